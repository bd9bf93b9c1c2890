"""Every command ends well: what it says to people, and the one object that it says to programs."""

import json
import shutil
from importlib.util import find_spec

import pytest

from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.segment.config import Thresholds
from tests.campaign.options import ENDLESS, commands

SCENES = "--images synthetic:8:1"
LABELS = "--data synthetic:8:2 --split all"
LINES = {
    "models": "",
    "runtimes": "",
    "sample": "--out photo.jpg",
    "demo": "--out out",
    "doctor": "",
    "train": f"--config open/config.json {LABELS} --steps 2 --batch-size 2 --prompts 2 --rounds 1 --workers 0 "
    "--out out",
    "compress": f"open {SCENES} --epochs 1 --importance-images 2 --workers 0 --out out",
    "embed": f"open {SCENES} --mask-points 2 --out out",
    "quantize": f"open {SCENES} --calibration-images 1 --metric minmax --no-twin --out out",
    "study quantization": f"open {SCENES} {LABELS} --limit 1 --bits 8 --metric minmax --seeds 1 --calibration-images 1",
    "study integers": f"open int8 {SCENES} --runtime onnxruntime --turns 1",
    "calibrate": f"open {SCENES} --photos 2 --points-per-side 4 --out out",
    "export-onnx": f"open {SCENES} --out out",
    "export-trt": f"graphs {SCENES} --target sm89 --precision fp32 --out out",
    "export-web": "graphs --out out",
    "convert": "open --layout safetensors --out whole.safetensors",
    "bench": "open --runs 1 --warmup 0 --no-memory --out out",
    "eval": f"open {LABELS} --limit 2",
    "card": f"open {LABELS} --limit 2 --out out",
    "segment": "open photo.png --box 2,2,40,40 --out out",
    "run": "recipe.toml --out out",
}
"""Of each command, the smallest that does all it is for."""
FAST = ("runtimes", "sample", "train", "embed", "quantize", "calibrate", "convert", "eval", "segment")
RECIPE = """
model = "open"
images = "synthetic:8:1"
data = "synthetic:8:2"
[compress]
epochs = 1
batch_size = 2
importance_images = 2
[quantize]
calibration_images = 1
[engine]
targets = []
[evaluate]
limit = 1
[bench]
runs = 1
warmup = 1
"""


@pytest.fixture
def folder(tmp_path, small_slim, photo, monkeypatch):
    """A checkpoint in everything mode's terms, a photo, and a recipe; where commands are given their inputs by name."""
    from PIL import Image

    small_slim.config = small_slim.config.replace(thresholds=Thresholds(-1.0, 0.0, tau=0.5))
    save_checkpoint(small_slim, tmp_path / "open")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_command_is_tried():
    assert {name for name in LINES if not name.startswith("study ")} == set(commands())
    assert not set(ENDLESS) & set(LINES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name) for name in LINES]
)
def test_it_ends_well_for_people_and_for_programs(sam_edge, folder, name):
    if name == "export-trt" and find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    line = [*name.split(), *LINES[name].split()]
    if "graphs" in line:
        assert sam_edge("export-onnx", "open", *SCENES.split(), "--out", "graphs")[0] == 0
    if "int8" in line:
        assert sam_edge("quantize", "open", *SCENES.split(), "--metric", "minmax", "--out", "int8")[0] == 0
    before = {path.name for path in folder.iterdir()}
    code, out, err = sam_edge(*line)
    assert code == 0, err
    assert "Traceback" not in err
    assert (out + err).strip()
    for path in folder.iterdir():
        if path.name not in before:
            assert not path.name.startswith("."), f"{path.name} was left behind"
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, out, err = sam_edge(*line, "--json")
    assert code == 0, err
    assert isinstance(json.loads(out), dict)
