"""Non-maximum suppression of boxes by their IoU and of masks by that of their pixels (csrc/suppression.cu)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from sam_edge.kernels.gpu import Argument, Device, DeviceArray, Source
from sam_edge.segment.records import suppress

SOURCE = Source("suppression", ("box_conflicts", "mask_conflicts", "keep_best"))
WORD, MOST = 64, 65535
"""Bits to a word of conflicts, and the most things: what a grid's second axis takes."""

reference_boxes = suppress
"""torchvision's `nms` in NumPy, which the kernel follows to the bit."""


def reference_masks(
    bits: UInt32[np.ndarray, "n width words"], scores: Float[np.ndarray, "n"], threshold: float
) -> Int[np.ndarray, "kept"]:
    """Indices of masks left, best first: each of which no better one kept has an IoU of pixels above `threshold`."""
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    areas = np.bitwise_count(bits).sum((1, 2), dtype=np.int64)
    for index in order.tolist():
        common = np.bitwise_count(bits[kept] & bits[index]).sum((1, 2), dtype=np.int64)
        either = areas[kept] + areas[index] - common
        if not (common[either > 0] / either[either > 0] > threshold).any():
            kept.append(index)
    return np.array(kept, np.int64)


def suppress_boxes(
    device: Device, boxes: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
) -> Int[np.ndarray, "kept"]:
    """The kernel: `reference_boxes`, of boxes XYXY."""
    _check(len(boxes))
    order = np.argsort(-scores, kind="stable")
    count, words = len(order), -(-len(order) // WORD)
    if not count:
        return order
    conflicts = device.empty((count, words), np.uint64)
    given = device.put(np.ascontiguousarray(boxes[order], np.float32))
    arguments: list[Argument] = [given, np.int32(count), np.float64(threshold), conflicts]
    device.launch(SOURCE, "box_conflicts", (words, words, 1), WORD, arguments)
    return order[_kept(device, conflicts, count)]


def suppress_masks(
    device: Device,
    bits: DeviceArray,
    boxes: Int[np.ndarray, "n 4"],
    areas: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    threshold: float,
) -> Int[np.ndarray, "kept"]:
    """The kernel: `reference_masks`, of bits as `sam_edge.kernels.masks` writes them.

    `bits` are N x width x words, the masks in any order; `boxes`, XYXY of the first and last pixels, and `areas`, in
    pixels, say where to look. Pairs cost as many words as their boxes share.
    """
    _check(len(boxes))
    order = np.argsort(-scores, kind="stable")
    count = len(order)
    if not count:
        return order
    conflicts, _ = _mask_conflicts(device, bits, boxes, areas, order, threshold)
    return order[_kept(device, conflicts, count)]


def common_pixels(
    device: Device, bits: DeviceArray, boxes: Int[np.ndarray, "n 4"], areas: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n n"]:
    """Pixels that each pair of masks has in common; a mask's own are its area."""
    _check(len(boxes))
    if not len(boxes):
        return np.zeros((0, 0), np.int64)
    _, common = _mask_conflicts(device, bits, boxes, areas, np.arange(len(boxes)), 1.0)
    upper = np.triu(device.get(common), 1).astype(np.int64)
    return upper + upper.T + np.diag(areas)


def _mask_conflicts(
    device: Device,
    bits: DeviceArray,
    boxes: Int[np.ndarray, "n 4"],
    areas: Int[np.ndarray, "n"],
    order: Int[np.ndarray, "n"],
    threshold: float,
) -> tuple[DeviceArray, DeviceArray]:
    count, words = len(order), -(-len(order) // WORD)
    conflicts = device.zeros((count, words), np.uint64)
    common = device.empty((count, count), np.int32)
    given = [device.put(np.ascontiguousarray(part[order], np.int32)) for part in (boxes, areas)]
    place = device.put(order.astype(np.int32))
    sizes = [np.int32(size) for size in (count, *bits.shape[1:])]
    arguments: list[Argument] = [bits, place, *given, *sizes, np.float64(threshold), conflicts, common]
    device.launch(SOURCE, "mask_conflicts", (-(-count // 8), count, 1), 256, arguments)
    return conflicts, common


def _kept(device: Device, conflicts: DeviceArray, count: int) -> Bool[np.ndarray, "n"]:
    kept = device.empty((count,), np.uint8)
    threads = min(max(WORD, -(-conflicts.shape[1] // 32) * 32), 1024)
    shared = 8 * conflicts.shape[1]
    device.launch(SOURCE, "keep_best", (1, 1, 1), threads, [conflicts, np.int32(count), kept], shared)
    return device.get(kept).astype(bool)


def _check(count: int) -> None:
    if count > MOST:
        raise ValueError(f"at most {MOST} can be suppressed at once, got {count}")


@dataclass(frozen=True)
class Work:
    """What suppression of boxes costs, all pairs compared."""

    comparisons: int
    bytes: int
    """Boxes once, and a bit of each pair written and read."""


def work(count: int) -> Work:
    """Of `count` boxes; those of masks depend on what their boxes share."""
    pairs = count * (count - 1) // 2
    return Work(comparisons=pairs, bytes=16 * count + 2 * 8 * count * -(-count // WORD))
