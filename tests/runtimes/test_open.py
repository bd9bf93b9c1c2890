"""Opening a MODEL on a runtime: what opens on what, and what is exported on the way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_edge.errors import BackendUnavailableError, ExportError, ModelError
from sam_edge.export import runtimes
from sam_edge.export.to_onnx import OnnxOptions
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.sam import EdgeSam
from sam_edge.runtimes.onnx_runtime import ExportedFolder
from sam_edge.runtimes.open import RUNTIMES, open_runtime, resolve_device
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import Prompts

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_sam: EdgeSam) -> Path:
    save_checkpoint(tiny_sam, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def exported(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """An exported folder without graphs: enough for what is decided before one is opened."""
    folder = tmp_path / "exported"
    folder.mkdir()
    values = {"precision": "fp32", "dialect": None, "config": json.loads(tiny_config.to_json()), "graphs": {}}
    (folder / "model.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, exported: Path) -> list[OnnxOptions]:
    """Exports that are only counted: each gives `exported`."""
    seen: list[OnnxOptions] = []

    def pretend(model: EdgeSam, out: Path, images: list[np.ndarray], options: OnnxOptions) -> tuple[Path, None]:
        assert len(images) == 2
        seen.append(options)
        return exported, None

    monkeypatch.setattr(runtimes, "export_onnx", pretend)
    return seen


def test_auto_is_torch_for_weights_and_onnx_runtime_for_graphs(checkpoint: Path, exported: Path) -> None:
    assert open_runtime(checkpoint).name == "torch"
    assert open_runtime(str(exported)).name == "onnxruntime"


def test_torch_refuses_graphs(exported: Path) -> None:
    with pytest.raises(ExportError, match="--runtime onnxruntime"):
        open_runtime(exported, "torch")


def test_a_checkpoint_is_exported_once_for_all_runtimes_that_read_graphs(
    checkpoint: Path, exports: list[OnnxOptions]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    assert open_runtime(checkpoint, "onnxruntime").name == "onnxruntime"
    assert open_runtime(checkpoint, "openvino").name == "openvino"
    assert exports == [OnnxOptions("fp32", "cpu")]


def test_graphs_run_on_as_many_threads_as_torch(
    checkpoint: Path, exports: list[OnnxOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race between runtimes is between equals."""
    seen = []
    for name in ("OnnxRuntime", "OpenVinoRuntime"):
        monkeypatch.setattr(runtimes, name, lambda folder, how, threads: seen.append(threads))
    for runtime in ("onnxruntime", "openvino", "openvino-bf16"):
        open_runtime(checkpoint, runtime)
    assert seen == [torch.get_num_threads()] * 3


def test_a_changed_checkpoint_is_exported_again(
    checkpoint: Path, tiny_sam: EdgeSam, exports: list[OnnxOptions]
) -> None:
    open_runtime(checkpoint, "onnxruntime")
    save_checkpoint(tiny_sam, checkpoint)
    open_runtime(checkpoint, "onnxruntime")
    assert len(exports) == 2


def test_an_unknown_runtime_or_device_lists_the_allowed_ones(exported: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=", ".join(RUNTIMES)):
        open_runtime(exported, "tflite")
    with pytest.raises(BackendUnavailableError, match="auto, cpu, cuda"):
        open_runtime(exported, device="tpu")


def test_an_unknown_model_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a known model nor a file"):
        open_runtime(str(tmp_path / "nothing"), "onnxruntime")


@without_cuda
def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(BackendUnavailableError, match="--device cpu"):
        resolve_device("cuda")


@without_cuda
def test_without_a_gpu_tensorrt_is_refused_before_anything_is_exported(
    checkpoint: Path, exports: list[OnnxOptions]
) -> None:
    with pytest.raises(BackendUnavailableError, match="CUDA device"):
        open_runtime(checkpoint, "tensorrt")
    assert exports == []


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_masks_on_every_runtime_here(checkpoint: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    prompts = Prompts.build(torch.tensor([[[[20.0, 30.0]]]]), torch.ones(1, 1, 1, dtype=torch.long))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = {}
    for name in ("torch", "onnxruntime", "openvino"):
        runtime = open_runtime(checkpoint, name)
        found[name] = runtime.decode(runtime.encode(pixels), prompts)[0]
    torch.testing.assert_close(found["onnxruntime"], found["torch"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["openvino"], found["torch"], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensorrt_builds_for_this_gpu_on_the_way(checkpoint: Path) -> None:
    try:
        runtime = open_runtime(checkpoint, "tensorrt", "cuda")
    except (ExportError, BackendUnavailableError) as error:
        pytest.skip(str(error))
    assert runtime.name == "tensorrt"
    assert ExportedFolder.read(runtime.folder.path).precision == "fp32"
