"""sam_edge.data.distance: exact, whatever the mask."""

import numpy as np
import pytest

from sam_edge.data.distance import squared_distance


def blob(height: int, width: int, seed: int) -> np.ndarray:
    """Random discs, some of them cut out of others."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for kept in (True, True, True, False, True, False):
        disc = (y - rng.integers(0, height)) ** 2 + (x - rng.integers(0, width)) ** 2
        mask[disc < rng.integers(1, max(height, width) // 2 + 2) ** 2] = kept
    return mask


SPECKS = np.random.default_rng(0)
MASKS = {
    "empty": np.zeros((6, 9), bool),
    "full": np.ones((17, 12), bool),
    "full and even": np.ones((8, 30), bool),
    "pixel": np.ones((1, 1), bool),
    "row": SPECKS.random((1, 30)) < 0.8,
    "column": SPECKS.random((30, 1)) < 0.8,
    "noise": SPECKS.random((20, 25)) < 0.9,
    "column-major": np.asfortranarray(blob(20, 31, 0)),
    "a view": blob(50, 60, 1)[::2, 3:57:2],
    **{f"blob {seed}": blob(24, 33, seed) for seed in range(2, 8)},
    **{f"tall blob {seed}": blob(50, 11, seed) for seed in range(3)},
}


def brute(mask: np.ndarray) -> np.ndarray:
    """Squared distance to each pixel outside, those around the picture among them, and the least of it."""
    rows, columns = np.nonzero(~np.pad(mask, 1))
    distance = np.zeros(mask.shape, np.int64)
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            distance[y, x] = ((rows - 1 - y) ** 2 + (columns - 1 - x) ** 2).min()
    return distance


@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_least_of_all_distances(name):
    mask = MASKS[name].copy()
    got = squared_distance(MASKS[name])
    assert np.issubdtype(got.dtype, np.integer)
    np.testing.assert_array_equal(got, brute(mask))
    np.testing.assert_array_equal(MASKS[name], mask)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_opencv_s_precise_transform(seed):
    cv2 = pytest.importorskip("cv2")
    mask = blob(180, 240, seed)
    padded = np.pad(mask.astype(np.uint8), 1)
    wanted = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    np.testing.assert_allclose(np.sqrt(squared_distance(mask)), wanted, atol=1e-3)


@pytest.mark.slow
def test_a_large_mask_takes_well_under_a_second(seconds):
    assert min(seconds(lambda: squared_distance(np.ones((500, 500), bool))) for _ in range(3)) < 0.3
