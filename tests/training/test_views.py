"""sam_edge.training.views: pixels, masks, points and boxes tell of the same thing after every crop and flip."""

from dataclasses import replace

import numpy as np
import pytest

from sam_edge.data.sample import Annotation, LabelledImage
from sam_edge.scenes.synthetic import SceneOptions, render_scene
from sam_edge.training.views import View, ViewOptions, cell_to_pixel, random_view

BLUE, ORANGE = np.array([20, 40, 200]), np.array([240, 140, 20])
PLAIN = ViewOptions(image_size=64, mask_size=32, prompts=3, colour=0.0, padding=(21.0, 41.0, 201.0))


def labelled(height: int, width: int, *masks: np.ndarray) -> LabelledImage:
    """Orange things on blue."""
    image = np.tile(BLUE.astype(np.uint8), (height, width, 1))
    for mask in masks:
        image[mask] = ORANGE
    return LabelledImage("picture", image, tuple(Annotation.from_mask(mask) for mask in masks))


def one_disc(height: int, width: int, x: float = 0.4, y: float = 0.55, radius: float = 0.22) -> LabelledImage:
    """A disc, in shares of the sides."""
    ys, xs = np.mgrid[:height, :width]
    mask = (xs - x * width) ** 2 + (ys - y * height) ** 2 < (radius * min(height, width)) ** 2
    return labelled(height, width, mask)


def views(sample: LabelledImage, options: ViewOptions, count: int = 40) -> list[View]:
    """Several random views; those that show nothing are left out."""
    found = [random_view(sample, options, np.random.default_rng(seed)) for seed in range(count)]
    return [view for view in found if view is not None]


def orange(view: View, size: int) -> np.ndarray:
    """Share of each mask cell's pixels that are orange."""
    closer = ((view.image - ORANGE[:, None, None]) ** 2.0).sum(0) < ((view.image - BLUE[:, None, None]) ** 2.0).sum(0)
    cell = closer.shape[0] // size
    return closer.reshape(size, cell, size, cell).mean((1, 3))


@pytest.mark.parametrize("shape", [(100, 100), (90, 160), (160, 90), (40, 30), (700, 500)], ids=str)
def test_masks_lie_where_the_pixels_say(shape):
    found = views(one_disc(*shape), PLAIN)
    assert len(found) > 20
    for view in found:
        mask = view.masks[0] / 255
        seen = orange(view, 32)
        assert np.abs(mask - seen).mean() < 0.03
        for along in (np.arange(32), np.arange(32)[:, None]):
            # centres of gravity, in cells: sizes are rounded to whole cells here and to whole pixels there
            assert (mask * along).sum() / mask.sum() == pytest.approx((seen * along).sum() / seen.sum(), abs=0.6)
        # every prompt of a picture with one thing asks for that
        assert (view.masks == view.masks[0]).all()


@pytest.mark.parametrize("shape", [(100, 100), (90, 160), (700, 500)], ids=str)
def test_boxes_are_tight_and_points_inside(shape):
    for view in views(one_disc(*shape), PLAIN):
        binary = view.masks[0] > 127
        rows, columns = np.flatnonzero(binary.any(1)), np.flatnonzero(binary.any(0))
        x0, y0, x1, y1 = view.boxes[0]
        # a disc's extreme cells may be covered by less than half
        cells = [2 * columns[0], 2 * rows[0], 2 * columns[-1] + 2, 2 * rows[-1] + 2]
        assert np.abs(view.boxes[0] - cells).max() <= 4
        x, y = (round(float(value)) for value in view.interior[0])
        assert binary[y // 2, x // 2]
        assert x0 <= x <= x1
        assert y0 <= y <= y1
        assert (view.image[:, y, x] == ORANGE).all()


def test_the_interior_point_is_the_middle_of_a_disc():
    options = ViewOptions(image_size=64, mask_size=32, prompts=1, whole=1.0, colour=0.0)
    for view in views(one_disc(100, 100), options, 6):
        x0, y0, x1, y1 = view.boxes[0]
        assert np.abs(view.interior[0] - [(x0 + x1) / 2, (y0 + y1) / 2]).max() <= 2


def test_whole_views_come_flipped_half_of_the_time_and_are_otherwise_segment_anything_s():
    options = ViewOptions(image_size=64, mask_size=32, prompts=1, whole=1.0, colour=0.0)
    found = views(one_disc(60, 120, x=0.25, y=0.5), options, 200)
    middles = np.array([view.interior[0] for view in found])
    left, right = middles[:, 0] < 32, middles[:, 0] > 32
    assert 70 < left.sum() < 130
    # padding stays below and right: a flip turns the picture, not the frame
    assert np.abs(middles[left] - [16, 16]).max() <= 2
    assert np.abs(middles[right] - [48, 16]).max() <= 2


@pytest.mark.parametrize(
    ("shape", "extent"), [((60, 120), (64, 32)), ((120, 60), (32, 64)), ((50, 50), (64, 64))], ids=str
)
def test_padding_is_the_pixel_mean_and_lies_outside_the_extent(shape, extent):
    padding = (10.4, 200.6, 30.0)
    options = ViewOptions(image_size=64, mask_size=32, prompts=1, whole=1.0, colour=0.0, padding=padding)
    for view in views(one_disc(*shape), options, 8):
        assert view.extent.tolist() == pytest.approx(extent)
        inside = np.zeros((64, 64), bool)
        inside[: extent[1], : extent[0]] = True
        assert (view.image[:, ~inside] == np.array([[10], [201], [30]])).all()
        assert not view.masks[:, ~inside[::2, ::2]].any()
        assert (view.image[:, inside] != np.array([[10], [201], [30]])).any(0).all()


def test_the_extent_of_a_crop_is_what_is_picture():
    for view in views(one_disc(80, 200), PLAIN, 60):
        width, height = view.extent
        assert (view.masks.shape, view.image.shape) == ((3, 32, 32), (3, 64, 64))
        assert 0 < width <= 64.001
        padded = (view.image == np.round(PLAIN.padding).astype(np.uint8)[:, None, None]).all(0)
        assert abs(padded.all(1).sum() - (64 - height)) <= 1
        assert abs(padded.all(0).sum() - (64 - width)) <= 1
        assert (view.boxes[:, 2] <= np.ceil(width)).all()
        assert (view.boxes[:, 3] <= np.ceil(height)).all()


def test_zooms_are_between_one_and_the_largest():
    options = ViewOptions(image_size=64, mask_size=32, prompts=1, whole=0.0, max_zoom=4.0, colour=0.0)
    sample = labelled(400, 400, np.ones((400, 400), bool))
    # a grid of lines every 40 pixels shows the magnification
    sample.image[::40] = 0
    sides = []
    for view in views(sample, options, 150):
        assert view.extent.tolist() == pytest.approx([64, 64])
        dark = (view.image.sum(0).mean(1) < 0.9 * np.median(view.image.sum(0).mean(1))).sum()
        sides.append(dark)
    # between two and a half and ten lines are to be seen
    assert min(sides) >= 2
    assert max(sides) <= 22
    assert len(set(sides)) > 3


def test_nothing_visible_gives_none():
    tiny = np.zeros((200, 200), bool)
    tiny[100:104, 100:104] = True
    assert views(labelled(200, 200, tiny), ViewOptions(64, 32, 3, whole=1.0), 10) == []
    # crops of a corner's thing show it only sometimes
    corner = np.zeros((200, 200), bool)
    corner[:30, :30] = True
    found = views(labelled(200, 200, corner), ViewOptions(64, 32, 3, whole=0.0, max_zoom=6.0), 100)
    assert 0 < len(found) < 95
    assert all((view.masks[0] > 127).sum() >= 12 for view in found)
    assert random_view(labelled(50, 50), PLAIN, np.random.default_rng(0)) is None


def test_fewer_things_than_prompts_repeat_and_more_are_drawn_from():
    masks = []
    for index in range(6):
        mask = np.zeros((120, 120), bool)
        mask[40 * (index // 3) : 40 * (index // 3) + 30, 40 * (index % 3) : 40 * (index % 3) + 30] = True
        masks.append(mask)
    options = ViewOptions(64, 32, prompts=4, whole=1.0, colour=0.0)
    many = views(labelled(120, 120, *masks), options, 30)
    for view in many:
        assert len({mask.tobytes() for mask in view.masks}) == 4
    assert len({view.masks.tobytes() for view in many}) > 5
    few = views(labelled(120, 120, *masks[:2]), options, 30)
    for view in few:
        assert len({mask.tobytes() for mask in view.masks}) == 2
        # each prompt's point and box are its own mask's
        for mask, point, box in zip(view.masks, view.interior, view.boxes, strict=True):
            x, y = (int(round(float(value)) // 2) for value in point)
            assert mask[y, x] > 127
            middle = (box[:2] + box[2:]) / 4
            assert mask[int(middle[1]), int(middle[0])] > 127


@pytest.mark.parametrize(("small_first", "times"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_small_things_come_first_by_the_power_of_their_area(small_first, times):
    ys, xs = np.mgrid[:128, :128]
    small, large = (xs - 20) ** 2 + (ys - 20) ** 2 < 12**2, (xs - 84) ** 2 + (ys - 84) ** 2 < 24**2
    sample = labelled(128, 128, small, large)
    options = replace(PLAIN, image_size=128, mask_size=64, whole=1.0, small_first=small_first)
    first, again = [], []
    for view in views(sample, options, 1200):
        is_small = view.masks.sum((1, 2)) < 255 * 2 * 12**2
        # both are asked for before one is asked for again
        assert is_small[:2].sum() == 1
        first.append(is_small[0])
        again.append(is_small[2])
    for share in (np.mean(first), np.mean(again)):
        assert share / (1 - share) == pytest.approx(times, rel=0.25)


def test_a_view_is_a_function_of_its_generator():
    sample = render_scene(4, SceneOptions(size=96))
    options = ViewOptions(64, 32, 3)
    first, again, other = (random_view(sample, options, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name in ("image", "masks", "interior", "boxes", "extent"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.image, other.image)


def test_colours_change_by_no_more_than_asked():
    sample = one_disc(100, 100)
    changed = views(sample, ViewOptions(64, 32, 1, whole=1.0, colour=0.2), 60)
    plain = views(sample, ViewOptions(64, 32, 1, whole=1.0, colour=0.0), 60)
    means = np.array([view.image.mean() for view in changed])
    level = np.mean([view.image.mean() for view in plain])
    assert np.ptp([view.image.mean() for view in plain]) < 3
    assert (np.abs(means / level - 1) < 0.25).all()
    assert means.std() > 0.05 * level


GREEN = np.array([30, 200, 60])


def green_block(height: int = 100, width: int = 100, share: float = 0.3) -> LabelledImage:
    """A green square on black."""
    image = np.zeros((height, width, 3), np.uint8)
    mask = np.zeros((height, width), bool)
    top, left = int(height * 0.3), int(width * 0.3)
    mask[top : top + int(height * share), left : left + int(width * share)] = True
    image[mask] = GREEN
    return LabelledImage("other", image, (Annotation.from_mask(mask),))


def test_pasted_things_hide_what_lies_beneath_and_are_asked_for():
    options = ViewOptions(image_size=64, mask_size=32, prompts=2, whole=0.5, colour=0.0, min_cells=4)
    under, hidden = one_disc(100, 100, x=0.5, y=0.5, radius=0.35), 0
    for seed in range(60):
        view = random_view(under, options, np.random.default_rng(seed), green_block())
        assert view is not None
        pixels = view.image.transpose(1, 2, 0).astype(int)
        is_green = (np.abs(pixels - GREEN).sum(-1) < 60).reshape(32, 2, 32, 2).mean((1, 3))
        masks = {mask.tobytes(): mask / 255 for mask in view.masks}
        pasted = [mask for mask in masks.values() if is_green[mask > 0.5].mean() > 0.8]
        others = [mask for mask in masks.values() if is_green[mask > 0.5].mean() <= 0.8]
        if min(mask.sum() for mask in masks.values()) < 40:
            # slivers at the edge are mostly half covered cells, neither one nor the other
            continue
        # every green pixel belongs to the pasted mask, which brings nothing but green along
        assert np.abs(sum(pasted) - is_green).mean() < 0.03
        assert not (pixels.sum(-1) == 0).any()
        hidden += bool(pasted)
        for mask in others:
            assert is_green[mask > 0.9].max(initial=0) <= 0.5
            orange_cells = orange(view, 32)
            assert np.abs(np.where(is_green > 0, 0, orange_cells - mask)).mean() < 0.03
    assert hidden > 30


def test_masks_that_are_wholly_covered_vanish():
    options = ViewOptions(image_size=64, mask_size=32, prompts=3, whole=1.0, colour=0.0, min_cells=4)
    # centred, so that flips leave it under the block
    under, over = one_disc(100, 100, x=0.5, y=0.5, radius=0.1), green_block(share=0.4)
    for seed in range(20):
        view = random_view(under, options, np.random.default_rng(seed), over)
        assert view is not None
        assert len({mask.tobytes() for mask in view.masks}) == 1
        assert (view.masks[0] > 127).sum() == pytest.approx((0.4 * 32) ** 2, rel=0.15)


def test_nothing_is_pasted_onto_padding_and_nothing_that_covers_most():
    options = ViewOptions(image_size=64, mask_size=32, prompts=3, whole=1.0, colour=0.0, min_cells=4)
    wide = one_disc(50, 100, x=0.2, y=0.5)
    padding = np.round(np.array(options.padding)).astype(np.uint8)[:, None, None]
    for seed in range(20):
        view = random_view(wide, options, np.random.default_rng(seed), green_block(share=0.69))
        assert view is not None
        assert (view.image[:, 32:] == padding).all()
        assert not view.masks[:, 16:].any()
        full = random_view(wide, options, np.random.default_rng(seed), labelled(100, 100, np.ones((100, 100), bool)))
        assert full is not None
        assert len({mask.tobytes() for mask in full.masks}) == 1


def test_cells_have_their_centres_at_pixel_centres():
    # cell 0 of two pixels has its centre between pixels 0 and 1
    assert cell_to_pixel(np.array([0.0, 31.0]), PLAIN).tolist() == [0.5, 62.5]


@pytest.mark.parametrize("shape", [(100, 100), (90, 160), (700, 500)], ids=str)
def test_a_thing_that_is_all_in_view_has_its_own_box_not_that_of_its_cells(shape):
    # a rectangle whose every side lies within a cell
    mask = np.zeros(shape, bool)
    mask[shape[0] // 3 : 2 * shape[0] // 3, shape[1] // 4 : shape[1] // 2] = True
    sample = labelled(*shape, mask)
    exact = 0
    for view in views(sample, PLAIN):
        covered = view.masks[0] / 255
        x0, y0, x1, y1 = view.boxes[0] / 2
        cut = covered[0].any() or covered[-1].any() or covered[:, 0].any() or covered[:, -1].any()
        if not cut and y1 < view.extent[1] / 2 and x1 < view.extent[0] / 2:
            exact += 1
            # what is covered in all is the box's area
            assert covered.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.01)
            assert (covered * (np.arange(32) + 0.5)).sum() / covered.sum() == pytest.approx((x0 + x1) / 2, abs=0.02)
    assert exact > 10


def test_ellipses_touch_their_boxes_and_stay_in_the_picture():
    options = ViewOptions(image_size=64, mask_size=64, prompts=12, whole=1.0, ellipses=1.0, colour=0.0)
    sizes = []
    for view in views(one_disc(60, 120), options, 20):
        assert view.masks.shape == (12, 64, 64)
        assert (view.boxes[:, 2:] <= view.extent + 1e-3).all()
        assert (view.boxes >= 0).all()
        for mask, point, (x0, y0, x1, y1) in zip(view.masks / 255, view.interior, view.boxes, strict=True):
            assert mask.sum() == pytest.approx(np.pi / 4 * (x1 - x0) * (y1 - y0), rel=0.05, abs=0.5)
            assert not mask[:, : int(x0)].any()
            assert not mask[int(np.ceil(y1)) :].any()
            assert point.tolist() == pytest.approx([(x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5], abs=1e-3)
            sizes.append(x1 - x0)
    assert min(sizes) < 6
    assert max(sizes) > 30


def test_ellipses_are_no_larger_than_asked():
    options = ViewOptions(image_size=64, mask_size=64, prompts=40, whole=1.0, ellipses=1.0, largest_ellipse=12.0)
    (view,) = views(one_disc(60, 120), options, 1)
    sides = np.sqrt(np.prod(view.boxes[:, 2:] - view.boxes[:, :2], axis=1))
    assert sides.max() == pytest.approx(12, abs=1)
    assert sides.min() < 5


def test_ellipses_come_as_often_as_asked():
    options = ViewOptions(image_size=64, mask_size=32, prompts=1, whole=1.0, ellipses=0.5)
    sample = labelled(100, 100, np.ones((100, 100), bool))
    things = sum((view.masks == 255).all() for view in views(sample, options, 200))
    assert 70 < things < 130


@pytest.mark.parametrize("shape", [(100, 100), (90, 160), (160, 90)], ids=str)
def test_points_on_nothing_are_on_the_picture_but_on_no_thing(shape):
    options = replace(PLAIN, nothing=0.4, prompts=8)
    found = views(one_disc(*shape), options, 60)
    empty = np.stack([~view.masks.any((1, 2)) for view in found])
    assert empty.mean() == pytest.approx(0.4, abs=0.08)
    for view, on_nothing in zip(found, empty, strict=True):
        for x, y in view.interior[on_nothing]:
            assert x <= view.extent[0]
            assert y <= view.extent[1]
            pixel = view.image[:, round(y.item()), round(x.item())]
            assert np.abs(pixel - BLUE).sum() < np.abs(pixel - ORANGE).sum()


def test_where_all_is_labelled_no_point_is_on_nothing():
    sample = labelled(80, 80, np.ones((80, 80), bool))
    assert all(view.masks.any((1, 2)).all() for view in views(sample, replace(PLAIN, nothing=1.0)))


def test_without_points_on_nothing_views_are_as_before():
    sample = one_disc(90, 160)
    for plain, with_them in zip(views(sample, PLAIN), views(sample, replace(PLAIN, nothing=0.5)), strict=True):
        asked = with_them.masks.any((1, 2))
        assert np.array_equal(plain.image, with_them.image)
        assert np.array_equal(plain.masks[asked], with_them.masks[asked])
