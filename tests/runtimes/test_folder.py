"""Exported folders: what their manifest says, and which are refused."""

import json
import shutil
from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from sam_edge.errors import BackendUnavailableError, CheckpointError, ExportError
from sam_edge.runtimes.onnx_runtime import ExportedFolder, OnnxRuntime, is_exported_folder
from sam_edge.segment.prompts import Prompts


@pytest.fixture
def copied(fp32, tmp_path) -> Path:
    """A copy of an exported folder, to be damaged."""
    return Path(shutil.copytree(fp32.path, tmp_path / "copy"))


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_a_changed_or_missing_graph_is_refused(copied, graph):
    file = copied / f"{graph}.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"{graph}\.onnx is missing or was changed .* export again"):
            ExportedFolder.read(copied)
        file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"{}", b'{"config": 3, "precision": "fp32", "dialect": null, "graphs": {}}'],
    ids=["empty", "cut", "binary", "list", "no entries", "config is a number"],
)
def test_a_broken_manifest_is_refused(copied, content):
    (copied / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        ExportedFolder.read(copied)


def test_a_manifest_whose_graphs_lack_their_file_is_refused(copied):
    values = json.loads((copied / "model.json").read_text())
    del values["graphs"]["encoder"]["sha256"]
    (copied / "model.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"model\.json"):
        ExportedFolder.read(copied)


def test_a_folder_without_a_manifest_is_no_export(copied):
    assert is_exported_folder(copied)
    (copied / "model.json").unlink()
    assert not is_exported_folder(copied)
    with pytest.raises(CheckpointError, match=r"model\.json cannot be read"):
        OnnxRuntime(copied)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="has a CUDA provider")
def test_cuda_without_its_provider_is_refused(fp32):
    with pytest.raises(BackendUnavailableError, match="use --device cpu"):
        OnnxRuntime(fp32.path, device="cuda")


def test_the_manifest_says_what_was_written(fp32, int8):
    folder = ExportedFolder.read(int8.path)
    assert (folder.precision, folder.dialect) == ("int8", "cpu")
    assert folder.config == int8.model.config
    assert ExportedFolder.read(fp32.path).dialect is None
    values = json.loads((int8.path / "model.json").read_text())
    assert values["parity"] == int8.parity.as_dict()
    assert values["parity"]["mask_iou"] >= 0.95
    assert sorted(path.name for path in int8.path.iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "model.json",
        "predict.onnx",
        "prepare.onnx",
        "upscale.onnx",
    ]


def test_a_folder_of_before_the_split_says_export_again_and_only_then(copied):
    values = json.loads((copied / "model.json").read_text())
    for graph in ("prepare", "predict", "upscale"):
        (copied / values["graphs"].pop(graph)["file"]).unlink()
    (copied / "model.json").write_text(json.dumps(values))
    runtime = OnnxRuntime(copied, threads=1)
    embeddings = runtime.encode(torch.zeros(1, 3, 64, 64))
    runtime.decode(embeddings, Prompts.build(torch.full((1, 2, 1, 2), 9.0), torch.ones(1, 2, 1, dtype=torch.long)))
    with pytest.raises(ExportError, match=r"has no prepare\.onnx.*export again") as refused:
        runtime.prepare(embeddings)
    assert "\n" not in str(refused.value)
