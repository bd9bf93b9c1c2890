"""sam_edge.segment.overlay: masks are seen where they are, and nowhere else."""

import tracemalloc

import numpy as np
import pytest

from sam_edge.segment.overlay import mask_colour, overlay


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


def test_colours_are_opencv_s_hues():
    cv2 = pytest.importorskip("cv2")
    hues = np.array([[[hue, 200, 255] for hue in range(180)]], np.uint8)
    wanted = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0].astype(int)
    assert np.abs(np.array([mask_colour(hue) for hue in range(180)]) - wanted).max() <= 1


@pytest.mark.parametrize(("side", "inside", "outside"), [(200, 1, 0), (800, 2, 0), (1200, 2, 1), (1600, 3, 1)])
def test_an_outline_is_as_thick_as_the_picture_asks(side, inside, outside):
    picture = np.full((side, 60, 3), 100, np.uint8)
    mask = np.zeros((side, 60), bool)
    mask[60:100, 10:50] = True
    row = overlay(picture, [mask])[80].astype(int)
    tint, ink = row[30], row[10]
    assert (tint != ink).any()
    wanted = [10 - outside, 10 + inside, 50 - inside, 50 + outside]
    assert np.flatnonzero((row != tint).any(1) & (row != 100).any(1)).tolist() == [
        *range(*wanted[:2]),
        *range(*wanted[2:]),
    ]


def test_a_mask_that_fills_the_picture_is_outlined_at_its_border(grey):
    drawn = overlay(grey, [np.ones((60, 80), bool)]).astype(int)
    ink = drawn[0, 0]
    for line in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (line == ink).all()
    assert (drawn[1:-1, 1:-1] != ink).any(-1).all()


def test_holes_are_outlined_and_left_untinted(grey):
    mask = square(10, 10, 60, 50) & ~square(25, 20, 40, 40)
    drawn = overlay(grey, [mask])
    assert (drawn[square(25, 20, 40, 40)] == 100).all()
    assert (drawn[30, 24] == drawn[10, 10]).all()
    assert (drawn[30, 24] != drawn[15, 15]).any()


def test_outlines_lie_over_smaller_masks(grey):
    large, small = square(5, 5, 70, 40), square(20, 30, 40, 50)
    drawn = overlay(grey, [large, small])
    assert (drawn[39, 30] == overlay(grey, [large])[39, 30]).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_masks_of_any_layout_are_drawn_alike(grey, order):
    mask = np.random.default_rng(0).random((60, 80)) < 0.5
    np.testing.assert_array_equal(overlay(grey, [np.array(mask, order=order)]), overlay(grey, [mask]))


def test_discs_are_round_and_smooth():
    black = np.zeros((41, 41, 3), np.uint8)
    drawn = overlay(black, [], points=[(20, 20, 1)])
    for turned in (drawn[::-1], drawn[:, ::-1], drawn.transpose(1, 0, 2)):
        np.testing.assert_array_equal(turned, drawn)
    assert (drawn[20, 20] == (40, 220, 60)).all()
    assert (drawn[20, 24] == 255).all()
    assert ((drawn > 0) & (drawn < 255)).any()
    assert not drawn[20, 26:].any()


@pytest.mark.parametrize("at", [(-3, -2), (81, 30), (40, 62), (-500, -500), (10**6, 10**6)])
def test_prompts_beyond_the_picture_are_cut_off(grey, at):
    x, y = at
    drawn = overlay(grey, [], points=[(x, y, 0)], boxes=[(x - 10, y - 10, x + 10, y + 10)])
    ys, xs = np.mgrid[:60, :80]
    far = np.maximum(np.abs(ys - y), np.abs(xs - x)) > 12
    assert (drawn[far] == 100).all()


def test_a_box_around_the_picture_leaves_it_alone(grey):
    np.testing.assert_array_equal(overlay(grey, [], boxes=[(-20, -20, 100, 100)]), grey)


def test_memory_stays_within_a_few_pictures():
    picture = np.full((600, 800, 3), 100, np.uint8)
    masks = [np.ones((600, 800), bool)] * 5
    tracemalloc.start()
    overlay(picture, masks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * picture.nbytes
