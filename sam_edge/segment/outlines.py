"""Outlines of masks: polygons along the edges of pixels, which fill exactly what they were made of."""

import numpy as np
from jaxtyping import Bool, Int

Ring = Int[np.ndarray, "corners 2"]


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[Ring]:
    """The closed outlines of a mask as (x, y) corners of pixels, without those on a straight line.

    Those around the mask run clockwise on the screen, those of holes the other way; pixels that touch at a corner alone
    are apart. The even-odd rule fills them to the mask, to the pixel.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    # an edge has the mask to its right: along rows between a pixel and the one above, along columns likewise
    across, down = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    stride = mask.shape[1] + 1
    starts, ends = [], []
    for step, (row, column) in (
        (1, np.nonzero(across > 0)),
        (-1, np.nonzero(across < 0)),
        (-stride, np.nonzero(down > 0)),
        (stride, np.nonzero(down < 0)),
    ):
        start = row * stride + column + {1: 0, -1: 1, -stride: stride, stride: 0}[step]
        starts.append(start)
        ends.append(start + step)
    start, end = np.concatenate(starts), np.concatenate(ends)
    if not len(start):
        return []
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    first = np.searchsorted(start, end)
    # where two edges leave a corner, the right turn keeps to the same pixel
    two = (first + 1 < len(start)) & (start[np.minimum(first + 1, len(start) - 1)] == end)
    turned = _right(end - start, stride)
    follows = np.where(two & (end[np.minimum(first + 1, len(end) - 1)] - end == turned), first + 1, first)
    return [_corners(ring, stride) for ring in _rings(start, follows)]


def _right(step: Int[np.ndarray, "n"], stride: int) -> Int[np.ndarray, "n"]:
    """Each step, turned right on the screen."""
    return np.select([step == 1, step == stride, step == -1], [stride, -1, -stride], 1)


def _rings(start: Int[np.ndarray, "n"], follows: Int[np.ndarray, "n"]) -> list[Int[np.ndarray, "edges"]]:
    places, after = start.tolist(), follows.tolist()
    left = [True] * len(places)
    rings = []
    for edge in range(len(places)):
        ring = []
        while left[edge]:
            left[edge] = False
            ring.append(places[edge])
            edge = after[edge]
        if ring:
            rings.append(np.array(ring))
    return rings


def _corners(ring: Int[np.ndarray, "edges"], stride: int) -> Ring:
    turns = np.diff(ring, append=ring[:1]) != np.diff(ring, prepend=ring[-1:])
    rows, columns = np.divmod(ring[turns], stride)
    return np.stack([columns, rows], 1)


def one_outline(rings: list[Ring]) -> Ring:
    """Several outlines as one, by ways there and back from the first's first corner, which enclose nothing."""
    home = rings[0][:1]
    parts = [part for ring in rings for part in (ring, ring[:1], home)]
    return np.concatenate(parts[:-2] if len(rings) == 1 else parts)
