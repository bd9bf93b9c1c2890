"""What everything mode asks of a mask at the picture's size, without ever holding many masks at that size.

Only tiles that a threshold's outline crosses are computed; every other tile lies whole on one side of it, which the
smallest and largest logit that it depends on tell. The thresholded pixels of a tile are kept as bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt, UInt8

from sam_edge.segment.scaling import AxisScaling, Scaling

MASK_THRESHOLD = 0.0
"""Logit above which a pixel belongs to a mask."""
TILE_BYTES = 2**20
"""Float logits computed at a time; a core's cache holds them."""


@dataclass(frozen=True)
class Measured:
    """K masks at the picture's size, as far as the filters need to know them."""

    stability: Float32[np.ndarray, "k"]
    """IoU of the masks cut a little above and a little below the threshold; NaN where both are empty."""
    boxes: Int[np.ndarray, "k 4"]
    """XYXY of the first and last pixels; zeros for an empty mask."""


def measure(logits: Float32[np.ndarray, "k h w"], scaling: Scaling, offset: float) -> Measured:
    """Stability score and box of each mask, as segment-anything computes them from logits at the picture's size.

    `offset` is how far the mask threshold is moved either way for the stability score.
    """
    if not len(logits):
        return Measured(np.zeros(0, np.float32), np.zeros((0, 4), np.int64))
    thresholds = (MASK_THRESHOLD, MASK_THRESHOLD + offset, MASK_THRESHOLD - offset)
    low, high = _tile_ranges(logits, scaling)
    mixed = np.zeros(low.shape, bool)
    for threshold in thresholds:
        mixed |= (low <= threshold) & (high > threshold)
    inside: list[np.ndarray] = [(low > threshold) & ~mixed for threshold in thresholds]
    heights, widths = _tile_lengths(scaling.rows), _tile_lengths(scaling.columns)
    counts = np.stack([np.einsum("kij,i,j->k", full, heights, widths) for full in inside[1:]])
    # whether the mask touches each row of pixels, and as bits each column
    rows = np.repeat(inside[0].any(2), scaling.rows.tile, 1).reshape(*low.shape[:2], scaling.rows.tile)
    columns = np.repeat(np.asarray(inside[0].any(1))[..., None] * np.uint8(255), scaling.columns.tile // 8, 2)
    columns = columns.view(_words(scaling.columns.tile))
    for masks, i, j, values in _mixed_tiles(logits, scaling, mixed):
        bits = _packed(values > thresholds[0])
        rows[masks, i] |= bits.any(2)
        runs = np.flatnonzero(np.diff(masks, prepend=-1))
        columns[masks[runs], j] |= np.bitwise_or.reduceat(np.bitwise_or.reduce(bits, axis=1), runs)
        for count, threshold in zip(counts, thresholds[1:], strict=True):
            pixels = np.bitwise_count(_packed(values > threshold)).reshape(len(masks), -1).sum(1, dtype=np.int64)
            count += np.bincount(masks, pixels, len(logits)).astype(count.dtype)
    top, bottom = _ends(rows.reshape(len(rows), -1)[:, : scaling.rows.length])
    touched = np.unpackbits(columns.view(np.uint8).reshape(len(columns), -1), axis=1)
    left, right = _ends(touched[:, : scaling.columns.length])
    boxes = np.stack([left, top, right, bottom], 1)
    smaller, larger = counts
    with np.errstate(invalid="ignore"):
        return Measured((smaller / larger).astype(np.float32), boxes)


def mask_of(logits: Float32[np.ndarray, "h w"], scaling: Scaling) -> Bool[np.ndarray, "height width"]:
    """One mask at the picture's size, in column-major order, which is the order of COCO's run lengths."""
    low, high = _tile_ranges(logits[None], scaling)
    mixed = (low <= MASK_THRESHOLD) & (high > MASK_THRESHOLD)
    rows, columns = scaling.rows, scaling.columns
    mask = np.repeat(np.repeat((low[0] > MASK_THRESHOLD).T, rows.tile, 1), columns.tile, 0)
    tiled = mask.reshape(len(columns.starts), columns.tile, len(rows.starts), rows.tile)
    for _, i, j, values in _mixed_tiles(logits[None], scaling, mixed):
        tiled[j, :, i] = (values > MASK_THRESHOLD).swapaxes(1, 2)
    return mask[: columns.length, : rows.length].T


def _mixed_tiles(
    logits: Float32[np.ndarray, "k h w"], scaling: Scaling, mixed: Bool[np.ndarray, "k i j"]
) -> Iterator[tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"], int, Float32[np.ndarray, "m tile_h tile_w"]]]:
    """Logits in the tiles marked: their masks in rising order, tile rows, the one tile column, and the pixels."""
    rows, columns = scaling.rows, scaling.columns
    cells_y = np.array(rows.starts)[:, None] + np.arange(rows.weights.shape[2])
    at_once = max(TILE_BYTES // (4 * rows.tile * columns.tile), 1)
    for j, start in enumerate(columns.starts):
        part, weights = logits[:, :, start : start + columns.weights.shape[2]], columns.weights[j].T
        masks, i = np.nonzero(mixed[:, :, j])
        for first in range(0, len(masks), at_once):
            these, tile_rows = masks[first : first + at_once], i[first : first + at_once]
            cells = part[these[:, None], cells_y[tile_rows]]
            # one product of all their rows: a stack of small ones is slow
            across = (cells.reshape(-1, cells.shape[2]) @ weights).reshape(*cells.shape[:2], -1)
            yield these, tile_rows, j, rows.weights[tile_rows] @ across


def _tile_ranges(
    logits: Float32[np.ndarray, "k h w"], scaling: Scaling
) -> tuple[Float32[np.ndarray, "k i j"], Float32[np.ndarray, "k i j"]]:
    """Smallest and largest logit that each tile depends on."""
    height, width = scaling.rows.weights.shape[2], scaling.columns.weights.shape[2]
    bands = [logits[:, start : start + height] for start in scaling.rows.starts]
    low, high = np.stack([band.min(1) for band in bands], 1), np.stack([band.max(1) for band in bands], 1)
    starts = scaling.columns.starts
    low = np.stack([low[..., start : start + width].min(2) for start in starts], 2)
    high = np.stack([high[..., start : start + width].max(2) for start in starts], 2)
    return low, high


def _tile_lengths(axis: AxisScaling) -> Int[np.ndarray, "tiles"]:
    """Pixels of each tile that the picture has."""
    return np.minimum(axis.length - axis.tile * np.arange(len(axis.starts)), axis.tile)


def _words(pixels: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The widest word that so many bits fill."""
    return np.dtype(f"u{min(pixels // 8, 8)}") if pixels in (8, 16, 32) else np.dtype(np.uint64)


def _packed(bits: Bool[np.ndarray, "m tile_h tile_w"]) -> UInt[np.ndarray, "m tile_h words"]:
    """Each row of a tile as words."""
    return np.packbits(bits, axis=2).view(_words(bits.shape[2]))


def _ends(
    touched: Bool[np.ndarray, "k length"] | UInt8[np.ndarray, "k length"],
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """First and last of those set; zeros where there is none."""
    first, last = touched.argmax(1), touched.shape[1] - 1 - touched[:, ::-1].argmax(1)
    return first, np.where(touched.any(1), last, 0)
