"""sam_edge.segment.outlines: polygons that fill exactly what they were made of."""

import numpy as np
import pytest

from sam_edge.segment.outlines import one_outline, outlines


def filled(rings: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Pixels whose centres lie inside by the even-odd rule: crossings of a ray to the right."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
            if y0 == y1:
                continue
            cut = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y > min(y0, y1)) & (y < max(y0, y1))) & (x < cut)
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_they_fill_to_the_mask_to_the_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((13, 17)) < 0.2 + 0.1 * seed
    rings = outlines(mask)
    np.testing.assert_array_equal(filled(rings, 13, 17), mask)
    np.testing.assert_array_equal(filled([one_outline(rings)], 13, 17), mask)
    for ring in rings:
        # no corner lies on a straight line, and neighbours differ in one coordinate alone
        steps = np.roll(ring, -1, 0) - ring
        assert ((steps == 0).sum(1) == 1).all()
        assert ((steps[:, 0] == 0) != (np.roll(steps, 1, 0)[:, 0] == 0)).all()


def test_pixels_that_touch_at_a_corner_are_apart_and_holes_run_the_other_way() -> None:
    assert len(outlines(np.eye(3, dtype=bool))) == 3
    mask = np.ones((5, 6), bool)
    mask[2, 2:4] = False

    def area(ring: np.ndarray) -> float:
        x, y = ring.T
        return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2

    assert sorted(area(ring) for ring in outlines(mask)) == [-2.0, 30.0]
    assert outlines(np.zeros((4, 4), bool)) == []
