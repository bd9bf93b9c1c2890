"""Exported folders: what their manifest says, and which are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sam_edge.errors import CheckpointError, ExportError
from sam_edge.runtimes.folder import ExportedFolder, is_exported_folder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
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


@pytest.mark.parametrize("name", ["../graphs/encoder.onnx", "/etc/passwd", "..", ".", "", "a/b.onnx"])
def test_a_manifest_names_files_beside_it_alone(copied, name):
    values = json.loads((copied / "model.json").read_text())
    values["graphs"]["encoder"]["file"] = name
    (copied / "model.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="is no file beside it"):
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


def test_the_manifest_says_what_was_written(fp32, int8):
    folder = ExportedFolder.read(int8.path)
    assert (folder.precision, folder.dialect) == ("int8", "cpu")
    assert folder.config == int8.model.config
    assert ExportedFolder.read(fp32.path).dialect is None
    for exported in (fp32, int8):
        # what a model costs is that of its architecture, whatever its numbers are stored in
        assert ExportedFolder.read(exported.path).cost == exported.runtime.cost == exported.torch.cost
    values = json.loads((int8.path / "model.json").read_text())
    assert values["parity"] == int8.parity.as_dict()
    assert values["parity"]["mask_iou"] >= 0.95
    assert sorted(path.name for path in int8.path.iterdir()) == [
        "README.md",
        "decoder.onnx",
        "encoder.onnx",
        "model.json",
        "predict.onnx",
        "prepare.onnx",
        "upscale.onnx",
    ]


def test_a_folder_of_before_costs_were_kept_opens_without(copied):
    values = json.loads((copied / "model.json").read_text())
    del values["cost"]
    (copied / "model.json").write_text(json.dumps(values))
    assert OnnxRuntime(copied).cost is None


def test_graphs_without_integers_need_no_notes_of_signs(fp32, int8):
    """Float graphs, and the decoder of integers whose arithmetic is float."""
    unsigned = {name for name, graph in ExportedFolder.read(int8.path).graphs.items() if "unsigned" in graph}
    assert unsigned == {"encoder"}
    assert not any("unsigned" in graph for graph in ExportedFolder.read(fp32.path).graphs.values())


def test_a_folder_of_before_the_split_says_export_again_and_only_then(copied):
    values = json.loads((copied / "model.json").read_text())
    for graph in ("prepare", "predict", "upscale"):
        (copied / values["graphs"].pop(graph)["file"]).unlink()
    (copied / "model.json").write_text(json.dumps(values))
    runtime = OnnxRuntime(copied, threads=1)
    embeddings = runtime.encode(np.zeros((1, 3, 64, 64), np.float32))
    runtime.decode(embeddings, Prompts.build(np.full((1, 2, 1, 2), 9.0, np.float32), np.ones((1, 2, 1), np.int64)))
    with pytest.raises(ExportError, match=r"has no prepare\.onnx.*export again") as refused:
        runtime.prepare(embeddings)
    assert "\n" not in str(refused.value)
