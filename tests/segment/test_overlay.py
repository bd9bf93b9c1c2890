"""sam_edge.segment.overlay: masks are seen where they are, and nowhere else."""

import numpy as np
import pytest

from sam_edge.segment.overlay import overlay


@pytest.fixture
def grey() -> np.ndarray:
    """A grey picture."""
    return np.full((60, 80, 3), 100, np.uint8)


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A rectangle within 60 x 80."""
    mask = np.zeros((60, 80), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_input_is_left_alone(grey):
    mask = square(10, 10, 40, 40)
    kept = grey.copy(), mask.copy()
    drawn = overlay(grey, [mask], points=[(5, 5, 1)], boxes=[(1, 1, 20, 20)])
    np.testing.assert_array_equal(grey, kept[0])
    np.testing.assert_array_equal(mask, kept[1])
    assert drawn.shape == grey.shape
    assert drawn.dtype == np.uint8
    assert not np.shares_memory(drawn, grey)


def test_masked_pixels_change_and_far_ones_do_not(grey):
    mask = square(10, 12, 40, 44)
    drawn = overlay(grey, [mask])
    assert (drawn[mask] != 100).any(-1).all()
    near = square(7, 9, 43, 47)
    assert (drawn[~near] == 100).all()


def test_the_inside_is_one_tint_that_lets_the_picture_through():
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    drawn = overlay(picture, [square(10, 10, 50, 50)]).astype(float)
    tint = (drawn - 0.55 * picture)[15:45, 15:45].reshape(-1, 3)
    assert np.ptp(tint, axis=0).max() <= 1.01
    assert tint.max() > 50


def test_small_masks_lie_over_large_ones(grey):
    large, small = square(5, 5, 70, 55), square(20, 20, 40, 40)
    for masks in ([large, small], [small, large]):
        drawn = overlay(grey, masks)
        assert (drawn[30, 30] != drawn[50, 60]).any()
        assert (drawn[30, 30] != overlay(grey, [large])[30, 30]).any()
    np.testing.assert_array_equal(overlay(grey, [large, small]), overlay(grey, [small, large]))


def test_colours_are_a_function_of_the_seed(grey):
    masks = [square(5, 5, 30, 30), square(40, 5, 70, 30)]
    np.testing.assert_array_equal(overlay(grey, masks), overlay(grey, masks))
    assert (overlay(grey, masks, seed=1) != overlay(grey, masks)).any()


def test_foreground_points_are_green_and_background_points_red(grey):
    drawn = overlay(grey, [], points=[(20, 30, 1), (60.4, 10, 0)]).astype(int)
    assert drawn[30, 20, 1] > drawn[30, 20, 0] + 50
    assert drawn[10, 60, 0] > drawn[10, 60, 1] + 50


def test_a_box_is_drawn_on_its_sides_alone(grey):
    drawn = overlay(grey, [], boxes=[(10, 15, 50, 45)])
    assert (drawn[15, 10:50] > 200).all()
    assert (drawn[15:45, 50] > 200).all()
    assert (drawn[20:40, 16:44] == 100).all()


def test_without_anything_to_draw_it_is_the_picture(grey):
    np.testing.assert_array_equal(overlay(grey, []), grey)
    np.testing.assert_array_equal(overlay(grey, [np.zeros((60, 80), bool)]), grey)
