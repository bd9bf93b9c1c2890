"""sam_edge.segment.crops: segment-anything's crops, and which boxes were probably cut by one."""

import numpy as np
import pytest

from sam_edge.segment.crops import crop_boxes, near_crop_edge

OVERLAP = 512 / 1500
SIZES = [(480, 640), (640, 481), (1, 70), (70, 1), (1, 1), (64, 64), (7, 300), (1201, 1803)]


@pytest.mark.parametrize("overlap", [0.0, 0.1, OVERLAP, 0.5, 0.99])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crops_are_segment_anything_s(amg, size, layers, overlap):
    boxes, of_layer = crop_boxes(size, layers, overlap)
    wanted, wanted_layers = amg.generate_crop_boxes(size, layers, overlap)
    assert [list(box) for box in boxes] == wanted
    assert of_layer == wanted_layers
    assert len(boxes) == sum(4**layer for layer in range(layers + 1))


def test_crops_of_any_picture_are_segment_anything_s(amg):
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = tuple(rng.integers(1, 900, 2).tolist())
        layers, overlap = int(rng.integers(0, 4)), float(rng.uniform(0, 1))
        boxes, of_layer = crop_boxes(size, layers, overlap)
        wanted, wanted_layers = amg.generate_crop_boxes(size, layers, overlap)
        assert [list(box) for box in boxes] == wanted
        assert of_layer == wanted_layers


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boxes_near_a_crop_s_edge_are_segment_anything_s(torch, amg, size):
    rng = np.random.default_rng(1)
    near = []
    for crop in crop_boxes(size, 2, OVERLAP)[0]:
        width, height = crop[2] - crop[0], crop[3] - crop[1]
        if width < 1 or height < 1:
            continue
        xs, ys = (np.sort(rng.integers(0, side, (200, 2)), 1) for side in (width, height))
        # boxes that end at a crop's edge, and up to a little more than the tolerance before it
        xs[:100, 1] = np.maximum(width - 1 - rng.integers(0, 25, 100), xs[:100, 0])
        ys[50:150, 0] = np.minimum(rng.integers(0, 25, 100), ys[50:150, 1])
        boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], 1)
        picture = (0, 0, size[1], size[0])
        got = near_crop_edge(boxes, crop, picture)
        wanted = amg.is_box_near_crop_edge(torch.from_numpy(boxes), list(crop), list(picture))
        assert got.dtype == bool
        np.testing.assert_array_equal(got, wanted.numpy())
        near.append(got.mean())
    # the first crop is the whole picture, whose own edges cut nothing
    assert near[0] == 0
    if min(size) > 100:
        assert 0 < max(near) < 1


def test_no_boxes_are_near_no_edge():
    assert near_crop_edge(np.zeros((0, 4), np.int64), (5, 5, 50, 50), (0, 0, 100, 100)).shape == (0,)
