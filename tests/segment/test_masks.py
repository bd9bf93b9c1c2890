"""sam_edge.segment.masks: stability scores, boxes and pixels are those of logits at the picture's size."""

import numpy as np
import pytest
from PIL import Image

from sam_edge.segment import masks
from sam_edge.segment.frame import Frame
from sam_edge.segment.masks import mask_of, measure
from sam_edge.segment.scaling import Scaling

SHAPES = [(64, 64), (50, 90), (91, 33), (1, 40), (300, 200)]


def logits(cells: int) -> np.ndarray:
    """Six masks of blobs of a size, one full, one empty, and one that only its stability score sees."""
    coarse = 4 * np.random.default_rng(cells).normal(size=(6, cells, cells)).astype(np.float32) - 1
    blobs = np.stack([Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in coarse])
    full, empty = (np.full((1, 32, 32), logit, np.float32) for logit in (5.0, -5.0))
    return np.concatenate([blobs, full, empty, -np.abs(blobs[:1]) / 2])


@pytest.mark.parametrize("offset", [1.0, 0.3, 0.0], ids=str)
@pytest.mark.parametrize("cells", [3, 9, 32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_measures_are_segment_anything_s(torch, amg, at_full_size, shape, cells, offset):
    frame, low_res = Frame.of(*shape, 64), logits(cells)
    full = torch.from_numpy(at_full_size(low_res, frame))
    got = measure(low_res, Scaling.of(frame, 32), offset)
    wanted = amg.calculate_stability_score(full, 0.0, offset)
    # two pixels' worth of rounding, in the smallest of the areas
    assert got.stability.dtype == np.float32
    assert np.allclose(got.stability, wanted.numpy(), atol=2e-3, rtol=1e-3, equal_nan=True)
    np.testing.assert_array_equal(got.boxes, amg.batched_mask_to_box(full > 0).numpy(), strict=True)


@pytest.mark.parametrize("cells", [3, 32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_those_of_the_logits_at_full_size(at_full_size, shape, cells):
    frame, low_res = Frame.of(*shape, 64), logits(cells)
    full = at_full_size(low_res, frame) > 0
    scaling = Scaling.of(frame, 32)
    for one, wanted in zip(low_res, full, strict=True):
        got = mask_of(one, scaling)
        assert got.shape == shape
        assert np.count_nonzero(got != wanted) <= 1


def test_only_tiles_on_an_outline_are_computed(monkeypatch):
    computed = []
    mixed_tiles = masks._mixed_tiles
    monkeypatch.setattr(masks, "_mixed_tiles", lambda *args: (computed.append(args[2].mean()), mixed_tiles(*args))[1])
    ys, xs = np.mgrid[:128, :128]
    disc = (30 - np.hypot(ys - 50, xs - 60)).astype(np.float32)[None]
    measure(disc, Scaling.of(Frame.of(480, 640, 512), 128), 1.0)
    assert 0 < computed[0] < 0.3


def test_chunks_change_nothing(monkeypatch):
    scaling, low_res = Scaling.of(Frame.of(90, 120, 64), 32), logits(9)
    whole = measure(low_res, scaling, 1.0)
    monkeypatch.setattr(masks, "TILE_BYTES", 1)
    pieces = measure(low_res, scaling, 1.0)
    np.testing.assert_array_equal(whole.boxes, pieces.boxes)
    assert np.allclose(whole.stability, pieces.stability, equal_nan=True)


def test_no_masks_have_no_measures():
    got = measure(np.zeros((0, 32, 32), np.float32), Scaling.of(Frame.of(50, 90, 64), 32), 1.0)
    assert got.stability.shape == (0,)
    assert got.boxes.shape == (0, 4)
