"""Low-resolution logits at a picture's size, whole or a piece at a time.

segment-anything interpolates twice (to the model's square, and from its unpadded part to the picture). Both steps are
linear and separable, so together they are `rows @ logits @ columns.T` with two sparse matrices whose rows add up to 1.
A piece of the picture then needs a few logits only, and lies between the smallest and the largest of them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from sam_edge.segment.frame import Frame

TILE_CELLS = 10
"""Low-resolution cells to a tile's side: fewer follow an outline more closely, and cost more calls."""
WORD = 64
"""Bits of the widest word: a tile's side in pixels is 8, 16, 32 or a multiple of 64, so that its bits fill words."""


@dataclass(frozen=True)
class AxisScaling:
    """One axis of the way from low-resolution logits to the picture, cut into tiles of equal length."""

    length: int
    """Pixels of the picture."""
    tile: int
    """Pixels of a tile; those that the last tile has beyond the picture are NaN, which no threshold passes."""
    starts: tuple[int, ...]
    """First cell that each tile needs."""
    weights: Float32[np.ndarray, "tiles tile cells"]
    """What each pixel of each tile takes from the tile's cells."""
    tap_starts: Int[np.ndarray, "length"]
    """First cell that each pixel needs."""
    taps: Float32[np.ndarray, "length taps"]
    """What each pixel takes from its cells."""

    @classmethod
    def of(cls, cells: int, square: int, used: int, length: int) -> "AxisScaling":
        """`cells` logits to `square` pixels, of which the first `used` become `length`."""
        matrix = interpolated(interpolated(np.eye(cells, dtype=np.float32), square)[:used], length)
        first, last = _ends(matrix)
        count = int((last - first).max())
        tap_starts = np.minimum(first, cells - count)
        taps = np.take_along_axis(matrix, tap_starts[:, None] + np.arange(count), 1)
        tile, starts, weights = _tiles(matrix, first, last, -(-cells * used // square // TILE_CELLS))
        return cls(length, tile, starts, weights, tap_starts, taps)

    def applied(self, values: Float32[np.ndarray, "cells n"]) -> Float32[np.ndarray, "length n"]:
        """The whole axis at the picture's size."""
        out = values[self.tap_starts] * self.taps[:, :1]
        for tap in range(1, self.taps.shape[1]):
            out += values[self.tap_starts + tap] * self.taps[:, tap : tap + 1]
        return out


@dataclass(frozen=True)
class Scaling:
    """The way from low-resolution logits to the picture."""

    rows: AxisScaling
    columns: AxisScaling

    @classmethod
    def of(cls, frame: Frame, mask_size: int) -> "Scaling":
        """The scaling of a frame whose logits are `mask_size` squared."""
        rows, columns = (
            AxisScaling.of(mask_size, frame.image_size, used, length)
            for used, length in zip(frame.input_size, frame.original_size, strict=True)
        )
        return cls(rows, columns)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.rows.length, self.columns.length

    def full(self, logits: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "height width"]:
        """All of a mask's logits at the picture's size (segment-anything's `postprocess_masks`)."""
        # columns first, as rows of the transpose: what is gathered then is contiguous
        across = self.columns.applied(np.ascontiguousarray(logits.T))
        return self.rows.applied(np.ascontiguousarray(across.T))

    def at(
        self, logits: Float32[np.ndarray, "k h w"], ys: Int[np.ndarray, "p"], xs: Int[np.ndarray, "p"]
    ) -> Float32[np.ndarray, "k p"]:
        """Logits at some pixels of the picture."""
        cells_y = self.rows.tap_starts[ys][:, None] + np.arange(self.rows.taps.shape[1])
        cells_x = self.columns.tap_starts[xs][:, None] + np.arange(self.columns.taps.shape[1])
        around = logits[:, cells_y[:, :, None], cells_x[:, None, :]]
        weights = self.rows.taps[ys][:, :, None] * self.columns.taps[xs][:, None, :]
        return np.einsum("kpyx,pyx->kp", around, weights)


def interpolated(values: Float32[np.ndarray, "n c"], length: int) -> Float32[np.ndarray, "length c"]:
    """Linear interpolation along the first axis, by pixel centres (torch's `interpolate`, `align_corners=False`)."""
    # one rounding, as by the fused operation that torch's kernels are compiled to
    scale = float(np.float32(len(values) / length))
    source = np.maximum(scale * (np.arange(length) + 0.5) - 0.5, 0).astype(np.float32)
    first = source.astype(np.int64)
    share = (source - first.astype(np.float32))[:, None]
    return (1 - share) * values[first] + share * values[np.minimum(first + 1, len(values) - 1)]


def _word_length(pixels: int) -> int:
    """The least side of a tile that is no shorter, or up to a quarter shorter."""
    if pixels > WORD:
        return WORD * max(round(pixels / WORD), 1)
    return next(side for side in (8, 16, 32, WORD) if 4 * side >= 3 * pixels)


def _ends(matrix: Float32[np.ndarray, "n cells"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """First non-zero column of each row, and the one after its last."""
    filled = matrix != 0
    return filled.argmax(1), matrix.shape[1] - filled[:, ::-1].argmax(1)


def _tiles(
    matrix: Float32[np.ndarray, "length cells"],
    first: Int[np.ndarray, "length"],
    last: Int[np.ndarray, "length"],
    count: int,
) -> tuple[int, tuple[int, ...], Float32[np.ndarray, "tiles tile width"]]:
    """The matrix as about `count` blocks along its diagonal, all of one shape."""
    length, cells = matrix.shape
    tile = _word_length(-(-length // max(count, 1)))
    pieces = [slice(start, min(start + tile, length)) for start in range(0, length, tile)]
    width = max(int(last[piece].max() - first[piece].min()) for piece in pieces)
    starts = tuple(min(int(first[piece].min()), cells - width) for piece in pieces)
    weights = np.full((len(pieces), tile, width), np.nan, np.float32)
    for index, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
        weights[index, : piece.stop - piece.start] = matrix[piece, start : start + width]
    return tile, starts, weights
