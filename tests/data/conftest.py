"""Data for the tests of sam_edge.data: real folders where they are at hand, small made-up ones elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_edge.data.rle import encode_mask


@pytest.fixture
def picture() -> np.ndarray:
    """A random RGB picture, 40 x 60."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def disc() -> np.ndarray:
    """A disc within 40 x 60 pixels."""
    y, x = np.mgrid[:40, :60]
    return (x - 25) ** 2 + (y - 18) ** 2 < 12**2


@pytest.fixture
def sa1b_root(tmp_path: Path, picture: np.ndarray, disc: np.ndarray) -> Path:
    """Ten image and JSON pairs of one disc each, and one image without JSON."""
    root = tmp_path / "sa1b"
    root.mkdir()
    for number in range(10):
        Image.fromarray(picture).save(root / f"sa_{number}.png")
        entry = {"segmentation": encode_mask(disc), "bbox": [14, 7, 23, 23], "point_coords": [[25.0, 18.0]]}
        content = {"image": {"height": 40, "width": 60}, "annotations": [entry]}
        (root / f"sa_{number}.json").write_text(json.dumps(content))
    Image.fromarray(picture).save(root / "unlabelled.png")
    return root
