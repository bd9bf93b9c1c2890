"""sam_edge.export.opening: what is exported or built on the way to a runtime, and how often."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export import opening
from sam_edge.export.to_onnx import OnnxOptions
from sam_edge.export.to_tensorrt import TrtOptions
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.cuda import cuda_devices
from sam_edge.runtimes.engines import write_engines
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import Prompts


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_sam: EdgeSam) -> Path:
    save_checkpoint(tiny_sam, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config: ModelConfig) -> list[OnnxOptions]:
    """Exports that are only counted: each gives a folder without graphs."""
    seen: list[OnnxOptions] = []
    exported = ExportedFolder(tmp_path / "exported", tiny_config, "fp32", None, {})

    def pretend(model: EdgeSam, out: Path, images: list[np.ndarray], options: OnnxOptions) -> tuple[Path, None]:
        assert len(images) == 2
        seen.append(options)
        return exported.path, None

    monkeypatch.setattr(opening, "export_onnx", pretend)
    monkeypatch.setattr(ExportedFolder, "read", lambda path: exported)
    return seen


def test_auto_is_torch_for_weights(checkpoint: Path) -> None:
    assert open_runtime(checkpoint).name == "torch"
    assert open_runtime(str(checkpoint), "torch", "cpu").name == "torch"


def test_a_checkpoint_is_exported_once_for_all_runtimes_that_read_graphs(
    checkpoint: Path, exports: list[OnnxOptions]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    assert open_runtime(checkpoint, "onnxruntime", "cpu").name == "onnxruntime"
    assert open_runtime(checkpoint, "openvino").name == "openvino"
    assert exports == [OnnxOptions("fp32", "cpu")]


def test_integers_are_exported_as_each_runtime_wants_them(
    tiny_slim: EdgeSam, photo: np.ndarray, tmp_path: Path, exports: list[OnnxOptions]
) -> None:
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax", prompts_per_image=1))
    quantized = save_checkpoint(tiny_slim, tmp_path / "int8")
    for _ in range(2):
        for runtime in ("onnxruntime", "openvino", "tensorrt"):
            opening.exported_folder(quantized, runtime)
    assert exports == [
        OnnxOptions("int8", "cpu", products="auto"),
        OnnxOptions("int8", "cpu", products="none"),
        OnnxOptions("int8", "tensorrt", products="auto"),
    ]


def test_a_changed_checkpoint_is_exported_again(
    checkpoint: Path, tiny_sam: EdgeSam, exports: list[OnnxOptions]
) -> None:
    open_runtime(checkpoint, "onnxruntime")
    save_checkpoint(tiny_sam, checkpoint)
    open_runtime(checkpoint, "onnxruntime")
    assert len(exports) == 2


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a CUDA device")
def test_without_a_gpu_tensorrt_is_refused_before_anything_is_exported(
    checkpoint: Path, exports: list[OnnxOptions]
) -> None:
    with pytest.raises(BackendUnavailableError, match="CUDA device"):
        open_runtime(checkpoint, "tensorrt")
    assert exports == []


@pytest.mark.parametrize(("target", "flavor"), [("sm89", "rtx"), ("sm90", "standard")])
def test_engines_are_built_once_for_this_gpu_by_the_library_that_can(
    target: str, flavor: str, tmp_path: Path, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[TrtOptions] = []
    folder = tmp_path / "graphs"
    folder.mkdir()
    monkeypatch.setattr(opening, "machine_target", lambda: target)
    monkeypatch.setattr(opening, "load_library", lambda flavor: None)
    monkeypatch.setattr(opening, "rtx_targets", lambda library: ("sm89", "sm120"))
    monkeypatch.setattr(opening, "build_engines", lambda exported, out, options, images: built.append(options))
    monkeypatch.setattr(ExportedFolder, "read", lambda path: ExportedFolder(path, tiny_config, "fp32", None, {}))
    first, again = (opening.with_engines(folder) for _ in range(2))
    assert first == again != folder
    assert built == [TrtOptions(flavor, (target,), precision="fp32")]
    # graphs that were exported anew, and the library gone
    (folder / "encoder.onnx").write_text("other")

    def absent(flavor: str) -> None:
        raise BackendUnavailableError("not installed")

    monkeypatch.setattr(opening, "load_library", absent)
    opening.with_engines(folder)
    assert built[1:] == [TrtOptions("standard", (target,), precision="fp32")]


def test_a_folder_that_has_engines_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "read_engines", lambda folder: ["an engine"])
    monkeypatch.setattr(opening, "build_engines", lambda *_: pytest.fail("built"))
    assert opening.with_engines(tmp_path) == tmp_path
    # one whose list of engines is empty has none
    monkeypatch.undo()
    write_engines(tmp_path, [])
    monkeypatch.setattr(opening, "machine_target", lambda: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception, match="asked"):
        opening.with_engines(tmp_path)


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_masks_on_every_runtime_here(checkpoint: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    prompts = Prompts.build(np.array([[[[20.0, 30.0]]]], np.float32), np.ones((1, 1, 1), np.int64))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    found = {}
    for name in ("torch", "onnxruntime", "openvino"):
        runtime = open_runtime(checkpoint, name)
        found[name] = runtime.decode(runtime.encode(pixels), prompts)[0]
    np.testing.assert_allclose(found["onnxruntime"], found["torch"], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["openvino"], found["torch"], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_tensorrt_builds_for_this_gpu_on_the_way(checkpoint: Path) -> None:
    try:
        runtime = open_runtime(checkpoint, "tensorrt", "cuda")
    except (ExportError, BackendUnavailableError) as error:
        pytest.skip(str(error))
    assert runtime.name == "tensorrt"
    assert ExportedFolder.read(runtime.folder.path).precision == "fp32"
