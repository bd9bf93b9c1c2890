"""sam_edge.bench.provenance: what tells a model from another, and a command as it would be typed."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

import sam_edge
from sam_edge.bench import provenance as module
from sam_edge.bench.provenance import command, made_of, model_sha256, provenance
from sam_edge.files import sha256_of
from sam_edge.segment.known import KNOWN, WEIGHTS, shipped_folder


def test_a_result_tells_all_of_it_and_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "argv", ["/usr/bin/sam-edge", "eval", "nano", "--data", "a b"])
    found = json.loads(json.dumps(provenance({"nano": "f" * 64}, {"a b": "0" * 64})))
    assert found["command"] == "sam-edge eval nano --data 'a b'"
    assert found["models"] == {"nano": "f" * 64}
    assert found["data"] == {"a b": "0" * 64}
    assert found["version"] == sam_edge.__version__
    assert found["hardware"]["cores"] >= 1
    assert set(found["clocks"]) == {"governor", "mhz", "most_mhz"}
    assert found["date"].endswith("+00:00")


def test_the_commit_is_the_checkouts_and_its_changes_are_told(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    assert module._checkout(tmp_path) == (None, None)

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    assert module._checkout(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("b")
    assert module._checkout(tmp_path) == (git("rev-parse", "HEAD"), True)


def test_a_checkpoint_is_known_by_its_weights_file(tmp_path: Path) -> None:
    folder = shipped_folder("nano")
    assert model_sha256("nano") == sha256_of(folder / WEIGHTS)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "CARD.md").write_text("another card")
    assert model_sha256(copy) == model_sha256("nano") == model_sha256(folder / WEIGHTS)
    with (copy / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert model_sha256(copy) != model_sha256("nano")


def test_an_exported_folder_is_known_by_all_of_its_graphs(tmp_path: Path) -> None:
    copy = shutil.copytree(shipped_folder("nano-onnx"), tmp_path / "copy")
    (copy / "README.md").unlink()
    assert model_sha256("nano-onnx") == model_sha256(copy)
    for graph in ("encoder", "upscale"):
        (copy / f"{graph}.onnx").write_bytes(b"another")
        assert model_sha256("nano-onnx") != model_sha256(copy)
        shutil.copy(shipped_folder("nano-onnx") / f"{graph}.onnx", copy)


def test_random_weights_are_known_by_their_architecture() -> None:
    found = {name: model_sha256(f"random:{name}") for name in KNOWN}
    assert None not in found.values()
    different = {json.dumps(asdict(known.config), sort_keys=True) for known in KNOWN.values()}
    assert len(set(found.values())) == len(different)
    assert model_sha256("random:nothing") is None


def test_what_has_no_weights_here_is_told_by_nothing(tmp_path: Path) -> None:
    assert model_sha256("vit_b") is None
    assert model_sha256(tmp_path) is None
    assert model_sha256(tmp_path / "nowhere.pth") is None


def test_what_is_made_of_a_known_model_is_told_by_its_name() -> None:
    assert made_of("nano-float") == "nano"
    assert made_of("nano-vit-float") == "nano-vit"
    assert made_of("other") is None


def test_modules_are_called_by_name() -> None:
    package = Path(sam_edge.__file__).parent
    assert command([str(package / "__main__.py"), "bench"]) == "python -m sam_edge bench"
    assert command([str(package / "studies" / "lineage.py"), "work"]) == "python -m sam_edge.studies.lineage work"
    assert command([str(package.parent / "bench" / "device.py")]) == "python -m sam_edge.bench.device"
