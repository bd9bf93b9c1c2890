"""sam_edge.runtimes.engines: which engines of a folder are chosen, and which are refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sam_edge.errors import BackendUnavailableError, CheckpointError
from sam_edge.files import sha256_of
from sam_edge.runtimes.engines import ENGINES, Engine, choose_engines, load_library, read_engines, write_engines
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.segment.config import ModelConfig


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
    assert [chosen["decoder"].largest("point_labels", axis) for axis in range(3)] == [2, 4, 3]


def test_what_is_written_is_read(folder: ExportedFolder) -> None:
    engines = read_engines(folder.path)
    assert [engine.file for engine in engines] == [
        f"{graph}.{target}.engine" for graph in ("encoder", "decoder") for target in ("sm86", "sm89")
    ]
    write_engines(folder.path, engines[::-1])
    assert read_engines(folder.path) == engines[::-1]


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


def test_engines_lie_beside_their_list_alone(folder: ExportedFolder) -> None:
    write_engines(folder.path, [replace(engine, file=f"../{engine.file}") for engine in read_engines(folder.path)])
    with pytest.raises(CheckpointError, match="is no file beside it"):
        read_engines(folder.path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "engines": []}', '{"schema": 1, "engines": [{}]}'])
def test_a_broken_list_of_engines_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / ENGINES).write_text(text)
    with pytest.raises(CheckpointError, match="does not describe engines") as refused:
        read_engines(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("flavor", "module", "remedy"),
    [
        ("rtx", "tensorrt_rtx", r"pip install 'sam-edge\[rtx\]'"),
        ("standard", "tensorrt", r"pip install 'sam-edge\[tensorrt\]' --extra-index-url https://pypi\.nvidia\.com"),
    ],
)
def test_an_absent_library_says_how_to_install_it(
    flavor: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendUnavailableError, match=remedy):
        load_library(flavor)
