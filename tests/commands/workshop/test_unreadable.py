"""Broken pictures of training data: counted by every command, and fatal where it is strict."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_edge.commands.common import sample_others, sample_pictures
from sam_edge.data.rle import encode_mask
from sam_edge.errors import DataError
from sam_edge.models.checkpoint import save_checkpoint

BROKEN = "broken.png"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Labelled pictures in SA-1B's layout, of which one is cut short and one has an annotation that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    mask = np.zeros((48, 64), bool)
    mask[8:40, 10:50] = True
    label = {"segmentation": encode_mask(mask), "bbox": [10, 8, 40, 32], "point_coords": [[30, 24]]}
    for number in range(6):
        picture = Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.json").write_text(json.dumps({"annotations": [label]}))
    (folder / BROKEN).write_bytes((folder / "0.png").read_bytes()[:900])
    (folder / "broken.json").write_text(json.dumps({"annotations": [label]}))
    (folder / "1.json").write_text(json.dumps({"annotations": [label, {"segmentation": "nothing"}]}))
    return folder


@pytest.fixture
def checkpoint(tiny_slim, tmp_path) -> Path:
    return save_checkpoint(tiny_slim, tmp_path / "model")


COMMANDS = {
    "train": ("--data", "--split", "all", "--steps", 4, "--batch-size", 4, "--prompts", 2, "--rounds", 1),
    "compress": ("--images", "--epochs", 1, "--importance", "taylor", "--batch-size", 2),
    "tinysam": ("--images", "--method", "tinysam", "--student", "STUDENT", "--epochs", 1, "--batch-size", 2),
    "embed": ("--images", "--mask-points", 0),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_counts_them_and_stops_at_the_first_where_it_is_strict(
    sam_edge, checkpoint, photos, tmp_path, name
):
    option, *settings = (str(checkpoint) if word == "STUDENT" else word for word in COMMANDS[name])
    command = "compress" if name == "tinysam" else name
    # worker processes tell it too
    workers = () if name == "embed" else ("--workers", 1)
    args = (command, checkpoint, option, photos, *settings, *workers, "--device", "cpu")
    code, out, err = sam_edge(*args, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    unreadable = json.loads(out)["unreadable"]
    assert any(BROKEN in reason for reason in unreadable)
    if name in ("train", "tinysam"):
        assert any("1.json: annotation 1" in reason for reason in unreadable)
    code, out, err = sam_edge(*args, "--out", tmp_path / "strict", "--strict")
    assert code == 1
    assert err.startswith("sam-edge: ")
    assert err.count("\n") == 1
    assert BROKEN in err or "annotation 1" in err
    assert not (tmp_path / "strict").exists() or name == "embed"


@pytest.mark.filterwarnings("ignore:skipped")
def test_in_the_place_of_broken_calibration_pictures_others_are_drawn(photos):
    for count in (1, 3, 6):
        assert len(sample_pictures(str(photos), count, 0)) == min(count, 5)
    for seed in range(4):
        taken, others = sample_pictures(str(photos), 2, seed), sample_others(str(photos), 3, seed, 2)
        assert (len(taken), len(others)) == (2, 3)
        assert not any((one == other).all() for one in taken for other in others)
    with pytest.raises(DataError, match=BROKEN):
        sample_pictures(str(photos), 6, 0, strict=True)
    for file in photos.glob("[0-9].png"):
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the \d pictures of .* can be read"):
        sample_pictures(str(photos), 1, 0)
