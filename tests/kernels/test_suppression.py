"""sam_edge.kernels.suppression: who stays is who stays in NumPy."""

import numpy as np
import pytest

from sam_edge.kernels.gpu import Device
from sam_edge.kernels.masks import packed
from sam_edge.kernels.suppression import (
    common_pixels,
    reference_boxes,
    reference_masks,
    suppress_boxes,
    suppress_masks,
    work,
)
from sam_edge.segment.records import box_of
from tests.kernels.emulated import Emulation

COUNTS = [0, 1, 2, 63, 64, 65, 200]


def some_boxes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in heaps, some empty, some twice, and scores that are often equal."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 40, (count, 4))
    boxes[:, 2:] += boxes[:, :2]
    boxes[1::7] = boxes[::7][: len(boxes[1::7])]
    boxes[3::11, 2:] = boxes[3::11, :2]
    return boxes, rng.integers(0, 9, count) / 9


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_boxes_left_are_the_references(count: int, threshold: float, device: Device) -> None:
    boxes, scores = some_boxes(count, count)
    found = suppress_boxes(device, boxes, scores, threshold)
    np.testing.assert_array_equal(found, reference_boxes(boxes, scores, threshold))


def test_many_boxes_are_walked_in_more_words_than_threads(device: Device) -> None:
    rng = np.random.default_rng(0)
    boxes = rng.integers(0, 4000, (4500, 4))
    boxes[:, 2:] = boxes[:, :2] + 1 + boxes[:, 2:] // 20
    scores = rng.random(len(boxes))
    if isinstance(device, Emulation):
        # two million pairs are enough for the CPU
        boxes, scores = boxes[:2000], scores[:2000]
    found = suppress_boxes(device, boxes, scores, 0.2)
    assert len(found) < len(boxes)
    np.testing.assert_array_equal(found, reference_boxes(boxes, scores, 0.2))


def some_masks(count: int, height: int, width: int) -> np.ndarray:
    """Rectangles with holes, one of them empty."""
    rng = np.random.default_rng(count)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, height), x : x + rng.integers(1, width)] = True
        mask[rng.random(mask.shape) < 0.1] = False
    masks[4:5] = False
    return masks


@pytest.mark.parametrize("count", [0, 1, 5, 64, 70])
@pytest.mark.parametrize(("height", "width"), [(45, 37), (64, 33), (7, 3)])
def test_masks_left_are_the_references(count: int, height: int, width: int, device: Device) -> None:
    masks = some_masks(count, height, width)
    bits = np.stack([packed(mask) for mask in masks]) if count else np.zeros((0, width, -(-height // 32)), np.uint32)
    boxes = np.array([box_of(mask) for mask in masks]).reshape(-1, 4)
    areas, scores = masks.sum((1, 2)), np.random.default_rng(9).integers(0, 9, count) / 9
    for threshold in (0.1, 0.5, 1.0):
        found = suppress_masks(device, device.put(bits), boxes, areas, scores, threshold)
        np.testing.assert_array_equal(found, reference_masks(bits, scores, threshold))
    flat = masks.reshape(count, height * width).astype(np.int64)
    np.testing.assert_array_equal(common_pixels(device, device.put(bits), boxes, areas), flat @ flat.T)


def test_more_things_than_a_grid_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        suppress_boxes(Emulation(), np.zeros((65536, 4)), np.zeros(65536), 0.5)


def test_its_work_is_counted() -> None:
    least = work(130)
    assert least.comparisons == 130 * 129 // 2
    assert least.bytes == 130 * 16 + 2 * 130 * 3 * 8
