import cv2
import numpy as np
import pytest

from sam_edge.data.split import is_val
from sam_edge.errors import DataError
from sam_edge.scenes.layouts import LAYOUTS
from sam_edge.scenes.light import Shadow
from sam_edge.scenes.shapes import UNIT_SHAPES, Coverage, Outline, cover
from sam_edge.scenes.synthetic import SceneOptions, SyntheticScenes, render_scene
from sam_edge.scenes.textures import PATTERNS, palette, pattern

SEEDS = range(24)


def test_a_seed_gives_the_same_scene_bit_for_bit():
    for seed in range(6):
        first, second = render_scene(seed), render_scene(seed)
        assert np.array_equal(first.image, second.image)
        assert first.annotations == second.annotations


def test_seeds_give_different_scenes():
    assert len({render_scene(seed).image.tobytes() for seed in range(8)}) == 8


@pytest.mark.parametrize("right_px", [-40, -3, 0, 3, 40])
@pytest.mark.parametrize("down_px", [-40, -3, 0, 3, 40])
@pytest.mark.parametrize("corner", [(0, 0), (0, 28), (28, 0), (28, 28)])
def test_a_shadow_falls_where_it_belongs_though_all_of_it_lies_beyond_an_edge(right_px, down_px, corner):
    # the same on a picture so large that no shadow leaves it
    covered = Coverage(*corner, np.full((4, 4), 255, np.uint8))
    inside, around = np.ones((3, 32, 32), np.float32), np.ones((3, 160, 160), np.float32)
    shadow = Shadow(right_px, down_px, 1.0, 0.5)
    shadow.cast(inside, covered)
    shadow.cast(around, Coverage(corner[0] + 64, corner[1] + 64, covered.share))
    assert np.allclose(inside, around[:, 64:96, 64:96])


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_disjoint_and_as_large_as_the_picture(seed):
    scene = render_scene(seed)
    covered = np.zeros(scene.image.shape[:2], int)
    for annotation in scene.annotations:
        covered += annotation.mask()
    assert scene.image.shape == (256, 256, 3)
    assert covered.max() == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_every_annotation_is_visible_with_its_point_inside_its_mask_and_box(seed):
    scene = render_scene(seed)
    assert len(scene.annotations) >= 2
    for annotation in scene.annotations:
        assert annotation.area >= SceneOptions().min_area_px
        x, y = annotation.point_xy
        left, top, width, height = annotation.bbox_xywh
        assert annotation.mask()[int(y), int(x)]
        assert left <= x < left + width <= 256
        assert top <= y < top + height <= 256


def test_most_instances_differ_from_what_surrounds_them():
    # The picture must show what the masks claim: the mean colour inside and just outside differ.
    distances = []
    for seed in SEEDS:
        scene = render_scene(seed)
        for annotation in scene.annotations:
            mask = annotation.mask()
            around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~mask
            inside, outside = scene.image[mask].mean(0), scene.image[around].mean(0)
            distances.append(np.abs(inside - outside).max())
    assert np.mean(np.array(distances) > 6) > 0.9


def test_the_mask_follows_the_painted_edge():
    # The share that is blended is the share that is thresholded, so an outline lands on the pixels it names.
    square = Outline((np.array([[10.0, 12.0], [30.0, 12.0], [30.0, 20.0], [10.0, 20.0]]),))
    covered = cover(square, 64)
    picture = np.zeros((64, 64), np.uint8)
    covered.window(picture)[:] = covered.share
    assert (picture >= 128).sum() == pytest.approx(20 * 8, rel=0.15)
    rows, columns = np.nonzero(picture >= 128)
    assert (columns.min(), rows.min()) == (10, 12)
    assert columns.max() in (29, 30)


@pytest.mark.parametrize("size", [32, 97, 512])
def test_other_sizes_render(size):
    for seed in range(3):
        assert render_scene(seed, SceneOptions(size=size)).image.shape == (size, size, 3)


@pytest.mark.parametrize("shape", set(UNIT_SHAPES), ids=lambda shape: shape.__name__)
def test_every_shape_covers_some_of_the_picture_and_nothing_when_outside(shape):
    rng = np.random.default_rng(0)
    outline = shape(rng)
    share = cover(outline.placed((64.0, 64.0), 30.0, 0.5), 128).share
    assert 60 < (share >= 128).sum() < 128 * 128 / 2
    assert cover(outline.placed((-300.0, 64.0), 30.0), 128) is None


@pytest.mark.parametrize("kind", sorted(set(PATTERNS)))
def test_patterns_are_blending_weights(kind):
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 40), (50, 60)):
        weights = pattern(rng, kind, height, width)
        assert weights.shape == (height, width)
        assert weights.dtype == np.float32
        assert weights.min() >= 0
        assert weights.max() <= 1


@pytest.mark.parametrize("layout", [layout for _, layout in LAYOUTS], ids=lambda layout: layout.__name__)
def test_every_layout_fills_the_picture_first(layout):
    rng = np.random.default_rng(0)
    first = next(layout(rng, 128, 8, 0.2, palette(rng)))
    assert first.outline is None or (cover(first.outline, 128).share == 255).all()


def test_scenes_are_numbered_split_by_name_and_independent_of_the_count():
    scenes, val = SyntheticScenes(20, seed=3), SyntheticScenes(40, seed=3, split="val")
    assert scenes.names[7] == "scene_3_000007.png"
    assert all(is_val(name) for name in val.names)
    number = int(val.names[0][-10:-4])
    same = SyntheticScenes(number + 1, seed=3)[number]
    assert same.name == val[0].name
    assert np.array_equal(same.image, val[0].image)


def test_scenes_of_two_seeds_differ():
    assert not np.array_equal(SyntheticScenes(2, seed=0)[1].image, SyntheticScenes(2, seed=1)[0].image)


def test_senseless_settings_are_refused():
    with pytest.raises(DataError, match="size"):
        SceneOptions(size=8)
    with pytest.raises(DataError, match="min_shapes"):
        SceneOptions(min_shapes=5, max_shapes=4)
    with pytest.raises(DataError, match="count"):
        SyntheticScenes(0)
    with pytest.raises(DataError, match="ten scenes"):
        render_scene(0, SceneOptions(size=32, min_area_px=10_000))
