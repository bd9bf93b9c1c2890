"""`demo` and `doctor`: what somebody runs first, and what they run when it fails."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sam_edge.commands.device import demo as command
from sam_edge.commands.device import doctor
from sam_edge.errors import CheckpointError

needs_onnxruntime = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")


@needs_onnxruntime
def test_the_demo_segments_the_sample_in_three_ways(sam_edge, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "POINTS_PER_SIDE", 4)
    code, out, err = sam_edge("demo", "--out", tmp_path / "d", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert [step["asked"] for step in result["steps"]] == ["point", "box", "everything"]
    assert [step["masks"] for step in result["steps"][:2]] == [1, 1]
    photo = np.asarray(Image.open(tmp_path / "d" / "photo.jpg").convert("RGB"))
    for asked in ("point", "box"):
        drawn = np.asarray(Image.open(tmp_path / "d" / f"{asked}.png"))
        assert drawn.shape == photo.shape
        # the mask is drawn, and not all over
        assert 0.01 < (drawn != photo).any(2).mean() < 0.99
    coco = COCO(tmp_path / "d" / "masks.json")
    assert len(coco.anns) == result["steps"][2]["masks"]
    # again, over what it wrote itself
    assert sam_edge("demo", "--out", tmp_path / "d")[0] == 0


def test_the_demo_without_a_runtime_says_what_to_install(sam_edge, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    code, out, err = sam_edge("demo", "--out", tmp_path / "d")
    assert (code, out) == (1, "")
    assert err == "sam-edge: nothing that runs graphs is here: pip install 'sam-edge[cpu]'.\n"
    assert not (tmp_path / "d").exists()


def test_the_doctor_looks_at_every_part(sam_edge):
    found = {finding.about: finding for finding in doctor.examine()}
    assert {
        "Python",
        "sam-edge",
        "packages",
        "workshop",
        "processor",
        "kernels",
        "GPU",
        "cache",
        "nano",
    } <= found.keys()
    # whatever is not well says what to do
    assert all(finding.advice for finding in found.values() if finding.state != "well")
    assert found["nano"].state == "well"
    code, out, _ = sam_edge("doctor", "--json")
    wrong = [finding for finding in json.loads(out)["findings"] if finding["state"] == "wrong"]
    assert code == bool(wrong)


def test_the_doctor_finds_what_is_wrong(sam_edge, monkeypatch, tmp_path):
    def broken(path):
        raise CheckpointError("encoder.onnx was changed since it was exported: export again.")

    monkeypatch.setattr(doctor.ExportedFolder, "read", broken)
    monkeypatch.setattr(doctor, "version", lambda name: "0.1" if name == "numpy" else "99")
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy>=2", "pillow>=11", "torch; extra == 'workshop'"])
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path / "not" / "there"))
    found = {finding.about: finding for finding in doctor.examine()}
    assert found["packages"].state == found["nano"].state == "wrong"
    assert "numpy 0.1, 2 is needed" in found["packages"].found
    assert str(tmp_path / "not" / "there") in found["cache"].found
    code, _, err = sam_edge("doctor")
    assert code == 1
    assert err.startswith("sam-edge: 2 of ")


@pytest.mark.parametrize(
    ("text", "number"), [("2.0.10", (2, 0, 10)), ("1.23rc1", (1, 23)), ("2.14.1+cu130", (2, 14, 1))]
)
def test_versions_are_compared_by_their_numbers(text, number):
    assert doctor._number(text) == number
