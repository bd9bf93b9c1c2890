"""sam-edge card: a page of what was measured, beside its numbers and its failures."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_edge.commands.device import card
from sam_edge.commands.device.card import write_card
from sam_edge.data import open_some
from sam_edge.errors import DataError
from sam_edge.files import check_target
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.segment.overlay import overlay

DATA = "synthetic:3:1"


@pytest.fixture
def checkpoint(tiny_sam, tmp_path):
    sources = [{"name": "coco128", "images": 100, "weight": 2.0}, {"name": "sa1b", "shards": 12, "weight": 1.0}]
    trained = {"step": "train", "settings": {"loop": {"steps": 7}}, "seed": 3, "data": sources, "seconds": 720}
    average = {"step": "average", "settings": {"shares": {"small": 0.25, "large": 0.75}}}
    tiny_sam.config = tiny_sam.config.with_step(trained).with_step(average)
    return str(save_checkpoint(tiny_sam, tmp_path / "model"))


def test_a_card_holds_its_notes_the_measurements_and_the_worst_masks(checkpoint, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("# tiny\n\nLicence: none.")
    result = write_card(checkpoint, [DATA], tmp_path / "card", notes=notes, split="all", limit=2)
    # a card may be written over
    check_target(tmp_path / "card")
    page = (tmp_path / "card" / "CARD.md").read_text()
    measured = json.loads((tmp_path / "card" / "card.json").read_text())["measured"]
    assert page.startswith("# tiny\n\nLicence: none.\n")
    assert measured == json.loads(json.dumps(result["measured"]))
    (row,) = measured
    assert len(row["clicks"]) == 5
    for value in (row["box"]["miou"], row["point_multimask"]["miou_best_of_three"], row["clicks"][4]):
        assert f"| {value:.3f} " in page
    assert "| train | coco128 (100 pictures, weight 2), sa1b (12 shards, weight 1) | 7 | 3 | 0.20 |" in page
    assert "| average of 0.25 small + 0.75 large |" in page
    for name in ("examples.png", "failures.png"):
        assert f"({name})" in page
        picture = np.array(Image.open(tmp_path / "card" / name))
        assert picture.shape[0] == 2 * 224
        assert picture.shape[1] % 224 == 0


def test_pictures_are_of_what_may_be_shown(checkpoint, tmp_path, monkeypatch):
    """Others are measured alone."""
    drawn = []

    def draw(image, *given, **more):
        drawn.append(image)
        return overlay(image, *given, **more)

    monkeypatch.setattr(card, "overlay", draw)
    write_card(checkpoint, [DATA], tmp_path / "card", shown=["synthetic:2:7"], split="all")
    allowed = [sample.image for sample in open_some("synthetic:2:7", "all", limit=None, seed=0)]
    assert drawn
    assert all(any(np.array_equal(image, other) for other in allowed) for image in drawn)
    assert "The first pictures of synthetic:2:7." in (tmp_path / "card" / "CARD.md").read_text()


def test_unreadable_notes_leave_nothing(checkpoint, tmp_path):
    with pytest.raises(DataError, match="notes"):
        write_card(checkpoint, [DATA], tmp_path / "card", notes=tmp_path / "notes.md")
    assert not (tmp_path / "card").exists()
