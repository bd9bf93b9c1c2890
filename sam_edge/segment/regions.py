"""Small holes and islands of masks, by connected components of runs."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int


def remove_small_regions(
    mask: Bool[np.ndarray, "h w"], min_area: int, mode: Literal["holes", "islands"]
) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """The mask with holes filled, or islands removed, of less than `min_area` pixels, and whether any were.

    Regions are 8-connected. Where all islands are small, the largest stays. As segment-anything's function of the
    same name (utils/amg.py), to the bit; a mask that needs no change is returned itself.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f'mode must be "holes" or "islands", got {mode!r}.')
    height, width = mask.shape
    # a column of the outside after each row ends its last run there, in one scan of all rows
    rows = np.zeros((height, width + 1), bool)
    np.logical_xor(mask, mode == "holes", out=rows[:, :width])
    starts, ends = _runs(rows)
    region = _regions(starts, ends, width + 1)
    # of runs that are a region's first, the areas say how large it is
    areas = np.bincount(region, weights=ends - starts, minlength=len(starts)).astype(np.int64)
    first = region == np.arange(len(region))
    small = first & (areas < min_area)
    if not small.any():
        return mask, False
    if mode == "islands" and small.sum() == first.sum():
        small[_largest(starts, region, areas, width + 1)] = False
    leave = small[region]
    steps = np.zeros(rows.size, np.int8)
    steps[starts[leave]], steps[ends[leave]] = 1, -1
    inside = np.cumsum(steps, dtype=np.int8).view(bool).reshape(rows.shape)
    return mask ^ inside[:, :width], True


def _runs(rows: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, " runs"], Int[np.ndarray, " runs"]]:
    """Where runs of set pixels start and end (exclusive) in the scan of rows whose last column is clear."""
    flat = rows.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        changes = np.concatenate([[0], changes])
    return changes[::2], changes[1::2]


def _regions(starts: Int[np.ndarray, " runs"], ends: Int[np.ndarray, " runs"], stride: int) -> Int[np.ndarray, " runs"]:
    """The first run of each run's 8-connected region, where `stride` places of the scan make a row.

    Runs hang below the first that they touch in the row above; whatever else they touch there is joined by hooking
    roots to smaller ones and jumping pointers (Shiloach and Vishkin, An O(log n) parallel connectivity algorithm,
    1982).
    """
    # ends are exclusive: touching at a corner is to start where the other ends
    low = np.searchsorted(ends, starts - stride, "left")
    high = np.searchsorted(starts, ends - stride, "right")
    touched = high - low
    parent = _roots(np.where(touched > 0, low, np.arange(len(starts))))
    more = np.flatnonzero(touched > 1)
    # a run that touches several joins each of them to the one before
    joins = touched[more] - 1
    one = np.repeat(low[more] - np.cumsum(joins) + joins, joins) + np.arange(joins.sum())
    other = one + 1
    while True:
        one, other = parent[one], parent[other]
        apart = one != other
        if not apart.any():
            return parent
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        parent = _roots(parent)


def _roots(parent: Int[np.ndarray, " runs"]) -> Int[np.ndarray, " runs"]:
    """Each run's root, by pointer jumping."""
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent = above


def _largest(
    starts: Int[np.ndarray, " runs"], region: Int[np.ndarray, " runs"], areas: Int[np.ndarray, " runs"], stride: int
) -> int:
    """The first run of the largest region.

    Of equals it is the one whose first block of 2 x 2 pixels comes first, as OpenCV scans blocks (Bolelli et al.,
    Spaghetti Labeling, 2019).
    """
    equals = np.flatnonzero(areas[region] == areas.max())
    rows, columns = np.divmod(starts[equals], stride)
    return int(region[equals[np.argmin(rows // 2 * stride + columns // 2)]])
