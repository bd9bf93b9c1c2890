"""sam_edge.segment.regions: small holes and islands go as in segment-anything, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sam_edge.segment.regions import remove_small_regions

MODES = ("holes", "islands")


def assert_theirs(mask: np.ndarray, min_area: int) -> None:
    """Both modes give segment-anything's pixels and flag, and leave the mask alone."""
    pytest.importorskip("cv2")
    amg = pytest.importorskip("segment_anything.utils.amg")
    before = mask.copy()
    for mode in MODES:
        wanted, wanted_changed = amg.remove_small_regions(mask, min_area, mode)
        got, changed = remove_small_regions(mask, min_area, mode)
        assert changed is wanted_changed
        assert got.dtype == bool
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(mask, before)
        assert changed or got is mask


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """Rectangles, some of them cut out of others, with specks."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    for _ in range(12):
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] ^= True
    return mask ^ (rng.random(mask.shape) < 0.003)


def spiral(side: int) -> np.ndarray:
    """One line of a pixel's width that winds inwards, with as much outside between its turns."""
    mask = np.zeros((side, side), bool)
    y, x, step = 0, 0, (0, 1)
    length = side - 1
    mask[0, 0] = True
    while length > 0:
        for _ in range(2):
            for _ in range(length):
                y, x = y + step[0], x + step[1]
                mask[y, x] = True
            step = step[1], -step[0]
        length -= 2
    return mask


CHECKS = np.indices((40, 51)).sum(0)
SPARSE = np.zeros((30, 41), bool)
SPARSE[::2, ::2] = True
NAMED = {
    "empty": np.zeros((20, 30), bool),
    "full": np.ones((20, 30), bool),
    "pixel": np.ones((1, 1), bool),
    "row": blobs(1, 60, 0),
    "column": blobs(60, 1, 1),
    "checkerboard": CHECKS % 2 == 0,
    "diagonals": CHECKS % 4 == 0,
    "dots": SPARSE,
    "spiral": spiral(41),
    "column-major": np.asfortranarray(blobs(40, 50, 2)),
    "a view": blobs(80, 90, 3)[::2, 5:71:3],
    "photo": blobs(480, 640, 4),
}


@pytest.mark.parametrize("min_area", [0, 1, 2, 9, 100, 10**6])
@pytest.mark.parametrize("name", NAMED)
def test_named_masks_are_segment_anything_s(name, min_area):
    assert_theirs(NAMED[name], min_area)


@settings(deadline=None, derandomize=True)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)), st.integers(0, 30))
def test_any_small_mask_is_segment_anything_s(mask, min_area):
    assert_theirs(mask, min_area)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.41, 0.5, 0.6, 0.9])
def test_noise_is_segment_anything_s(density):
    rng = np.random.default_rng(round(100 * density))
    for _ in range(100):
        mask = rng.random(rng.integers(1, 60, 2)) < density
        assert_theirs(mask, int(rng.integers(0, 40)))


def test_of_equal_islands_the_one_that_opencv_meets_first_stays():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = np.zeros((24, 30), bool)
        mask[rng.integers(0, 24, 6), rng.integers(0, 30, 6)] = True
        assert_theirs(mask, 20)


def test_diagonal_neighbours_belong_together():
    mask = np.eye(6, dtype=bool)
    got, changed = remove_small_regions(mask, 6, "islands")
    assert got is mask
    assert not changed
    got, changed = remove_small_regions(~mask, 7, "holes")
    assert changed
    assert got.all()


def test_of_small_islands_the_largest_stays():
    mask = np.zeros((9, 9), bool)
    mask[0, 0], mask[4:6, 4:6] = True, True
    got, changed = remove_small_regions(mask, 50, "islands")
    assert changed
    assert got.sum() == 4
    assert got[4:6, 4:6].all()


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="bays"):
        remove_small_regions(np.zeros((3, 3), bool), 2, "bays")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_it_takes_no_longer_than_five_times_opencv(mode, seconds):
    pytest.importorskip("cv2")
    amg = pytest.importorskip("segment_anything.utils.amg")
    mask = NAMED["photo"]
    ours = min(seconds(lambda: remove_small_regions(mask, 100, mode)) for _ in range(9))
    theirs = min(seconds(lambda: amg.remove_small_regions(mask, 100, mode)) for _ in range(9))
    assert ours < 5 * theirs
