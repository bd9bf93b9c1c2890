"""Choosing engines, cutting calls to what they take, and, where there is a GPU, agreement with ONNX Runtime."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sam_edge.errors import BackendUnavailableError, CheckpointError, ExportError, PromptError
from sam_edge.export.parity import answers, compare
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines
from sam_edge.files import sha256_of
from sam_edge.models.sam import EdgeSam
from sam_edge.runtimes.onnx_runtime import ExportedFolder, OnnxRuntime, decoder_inputs
from sam_edge.runtimes.tensorrt_runtime import (
    ENGINES,
    Engine,
    TensorRtRuntime,
    bindable,
    choose_engines,
    decode_in_parts,
    decoder_tensors,
    read_engines,
    write_engines,
)
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import Prompts

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def _engine(folder: Path, graph: str, target: str) -> Engine:
    file = folder / f"{graph}.{target}.engine"
    file.write_bytes(f"{graph} for {target}".encode())
    largest = {"max": [2, 4, 3]}
    return Engine(
        file=file.name,
        graph=graph,
        target=target,
        flavor="rtx",
        version="0",
        precision="fp32",
        shapes={"pixels": largest, "point_labels": largest},
        onnx_sha256=sha256_of(folder / f"{graph}.onnx"),
        sha256=sha256_of(file),
        build_seconds=1.0,
        bytes=file.stat().st_size,
    )


@pytest.fixture
def folder(tmp_path: Path, tiny_config: ModelConfig) -> ExportedFolder:
    """An exported folder whose graphs and engines are a few letters each."""
    graphs = {}
    for name in ("encoder", "decoder"):
        (tmp_path / f"{name}.onnx").write_text(name)
        graphs[name] = {"file": f"{name}.onnx", "sha256": sha256_of(tmp_path / f"{name}.onnx")}
    values = {"precision": "fp32", "dialect": None, "config": json.loads(tiny_config.to_json()), "graphs": graphs}
    (tmp_path / "model.json").write_text(json.dumps(values))
    engines = [_engine(tmp_path, name, target) for name in graphs for target in ("sm86", "sm89")]
    write_engines(tmp_path, engines)
    return ExportedFolder.read(tmp_path)


def test_the_engines_of_the_target_are_chosen(folder: ExportedFolder) -> None:
    chosen = choose_engines(folder, "sm89")
    assert {name: engine.file for name, engine in chosen.items()} == {
        "encoder": "encoder.sm89.engine",
        "decoder": "decoder.sm89.engine",
    }


def test_a_target_that_was_not_built_is_refused_with_those_that_were(folder: ExportedFolder) -> None:
    with pytest.raises(BackendUnavailableError, match=r"sm120 \(built: sm86, sm89\).*--target sm120"):
        choose_engines(folder, "sm120")
    (folder.path / ENGINES).unlink()
    with pytest.raises(BackendUnavailableError, match="built: none"):
        choose_engines(folder, "sm89")


def test_a_changed_engine_is_refused(folder: ExportedFolder) -> None:
    (folder.path / "decoder.sm89.engine").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"decoder\.sm89\.engine is missing or was changed"):
        choose_engines(folder, "sm89")
    choose_engines(folder, "sm86")


def test_an_engine_of_other_graphs_is_refused(folder: ExportedFolder) -> None:
    write_engines(folder.path, [replace(engine, onnx_sha256="0") for engine in read_engines(folder.path)])
    with pytest.raises(CheckpointError, match=r"built from another .*\.onnx"):
        choose_engines(folder, "sm89")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "engines": []}', '{"schema": 1, "engines": [{}]}'])
def test_a_broken_list_of_engines_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / ENGINES).write_text(text)
    with pytest.raises(CheckpointError, match="does not describe engines") as refused:
        read_engines(tmp_path)
    assert "\n" not in str(refused.value)


@without_cuda
def test_without_a_gpu_the_error_names_another_runtime(folder: ExportedFolder) -> None:
    with pytest.raises(BackendUnavailableError, match="--runtime onnxruntime") as refused:
        TensorRtRuntime(folder.path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("batch", "sets"), [(1, 1), (2, 4), (3, 9)])
@pytest.mark.parametrize("with_masks", [False, True])
def test_parts_give_what_one_call_gives(batch: int, sets: int, with_masks: bool, folder: ExportedFolder) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.rand(batch, 1, 1, 1, generator=generator)
    coords = torch.rand(batch, sets, 3, 2, generator=generator)
    masks = torch.rand(batch, sets, 1, 2, 2, generator=generator) if with_masks else None
    calls: list[tuple[int, int]] = []

    def run(images: torch.Tensor, part: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((part.labels.shape[0], part.labels.shape[1]))
        iou = images[..., 0] + part.coords.sum((2, 3))[..., None]
        return iou[..., None, None] + (0 if part.masks is None else part.masks), iou

    prompts = Prompts(coords, torch.ones(batch, sets, 3, dtype=torch.long), masks)
    logits, iou = decode_in_parts(run, embeddings, prompts, choose_engines(folder, "sm89")["decoder"], 2)
    assert all(images <= 2 and several <= 4 for images, several in calls)
    wanted_logits, wanted_iou = run(embeddings, prompts)
    torch.testing.assert_close(logits, wanted_logits, rtol=0, atol=0)
    torch.testing.assert_close(iou, wanted_iou, rtol=0, atol=0)


def test_more_points_than_the_engine_takes_are_refused(folder: ExportedFolder) -> None:
    prompts = Prompts(torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, dtype=torch.long))
    with pytest.raises(PromptError, match="4 points is more than this engine's 3"):
        decode_in_parts(
            lambda *_: pytest.fail("decoded"), torch.zeros(1), prompts, choose_engines(folder, "sm89")["decoder"], 1
        )


@pytest.mark.parametrize("with_masks", [False, True])
def test_prompt_tensors_are_those_of_onnx_runtime(with_masks: bool, tiny_config: ModelConfig) -> None:
    size = tiny_config.mask_size
    masks = torch.ones(2, 3, 1, size, size, dtype=torch.float64) if with_masks else None
    prompts = Prompts(torch.ones(2, 3, 1, 2, dtype=torch.float64), torch.ones(2, 3, 1, dtype=torch.int32), masks)
    found = decoder_tensors(prompts, size, torch.device("cpu"))
    wanted = decoder_inputs(tiny_config, prompts)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, torch.from_numpy(wanted[name]), rtol=0, atol=0)


def test_bound_memory_is_dense_and_aligned() -> None:
    values = torch.arange(600.0)
    for view in (values, values[1:65], values[::2], values.reshape(20, 30).t()):
        bound = bindable(view, torch.device("cpu"))
        assert bound.is_contiguous()
        assert torch.equal(bound, view)
        # torch's own CPU allocator promises 64 bytes, CUDA's 512
        assert bound.data_ptr() % 64 == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_engines_agree_with_onnx_runtime(tiny_sam: EdgeSam, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    scenes = SyntheticScenes(2)
    images = [scenes[0].image, scenes[1].image]
    export_onnx(tiny_sam, tmp_path / "graphs", images, OnnxOptions())
    major, minor = torch.cuda.get_device_capability()
    # eight sets per call, so that the thirteen of the comparison are cut
    options = TrtOptions(targets=(f"sm{major}{minor}",), max_sets=8)
    try:
        build_engines(ExportedFolder.read(tmp_path / "graphs"), tmp_path / "engines", options)
    except ExportError as error:
        pytest.skip(str(error))
    runtime = TensorRtRuntime(tmp_path / "engines")
    parity = compare(answers(OnnxRuntime(tmp_path / "graphs"), images), answers(runtime, images))
    runtime.synchronise()
    assert parity.mask_iou > 0.98
    assert runtime.encode(torch.zeros(2, 3, 64, 64)).device.type == "cuda"
