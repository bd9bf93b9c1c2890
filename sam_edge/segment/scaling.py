"""Low-resolution logits at a picture's size, a piece at a time.

segment-anything interpolates twice (to the model's square, and from its unpadded part to the picture). Both steps are
linear and separable, so together they are `rows @ logits @ columns.T` with two sparse matrices whose rows add up to 1.
A piece of the picture then needs a few logits only, and lies between the smallest and the largest of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

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
    weights: Float[Tensor, "tiles tile cells"]
    """What each pixel of each tile takes from the tile's cells."""
    tap_starts: Int[Tensor, "length"]
    """First cell that each pixel needs."""
    taps: Float[Tensor, "length taps"]
    """What each pixel takes from its cells."""

    @classmethod
    def of(cls, cells: int, square: int, used: int, length: int) -> "AxisScaling":
        """`cells` logits to `square` pixels, of which the first `used` become `length`."""
        # the two interpolations of the identity: the same float32 coefficients as segment-anything's
        once = F.interpolate(torch.eye(cells)[None], square, mode="linear", align_corners=False)
        matrix = F.interpolate(once[..., :used], length, mode="linear", align_corners=False)[0].T.contiguous()
        first, last = _ends(matrix)
        count = int((last - first).max())
        tap_starts = first.clamp(max=cells - count)
        taps = matrix.gather(1, tap_starts[:, None] + torch.arange(count))
        tile, starts, weights = _tiles(matrix, first, last, -(-cells * used // square // TILE_CELLS))
        return cls(length, tile, starts, weights, tap_starts, taps)


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

    def at(self, logits: Float[Tensor, "k h w"], ys: Int[Tensor, "p"], xs: Int[Tensor, "p"]) -> Float[Tensor, "k p"]:
        """Logits at some pixels of the picture."""
        cells_y = self.rows.tap_starts[ys][:, None] + torch.arange(self.rows.taps.shape[1])
        cells_x = self.columns.tap_starts[xs][:, None] + torch.arange(self.columns.taps.shape[1])
        around = logits[:, cells_y[:, :, None], cells_x[:, None, :]]
        return torch.einsum("kpyx,py,px->kp", around, self.rows.taps[ys], self.columns.taps[xs])


def _word_length(pixels: int) -> int:
    """The least side of a tile that is no shorter, or up to a quarter shorter."""
    if pixels > WORD:
        return WORD * max(round(pixels / WORD), 1)
    return next(side for side in (8, 16, 32, WORD) if 4 * side >= 3 * pixels)


def _ends(matrix: Float[Tensor, "n cells"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """First non-zero column of each row, and the one after its last."""
    filled = (matrix != 0).to(torch.uint8)
    return filled.argmax(1), matrix.shape[1] - filled.flip(1).argmax(1)


def _tiles(
    matrix: Float[Tensor, "length cells"], first: Int[Tensor, "length"], last: Int[Tensor, "length"], count: int
) -> tuple[int, tuple[int, ...], Float[Tensor, "tiles tile width"]]:
    """The matrix as about `count` blocks along its diagonal, all of one shape."""
    length, cells = matrix.shape
    tile = _word_length(-(-length // max(count, 1)))
    pieces = [slice(start, min(start + tile, length)) for start in range(0, length, tile)]
    width = max(int(last[piece].max() - first[piece].min()) for piece in pieces)
    starts = tuple(min(int(first[piece].min()), cells - width) for piece in pieces)
    weights = matrix.new_full((len(pieces), tile, width), torch.nan)
    for index, (piece, start) in enumerate(zip(pieces, starts, strict=True)):
        weights[index, : piece.stop - piece.start] = matrix[piece, start : start + width]
    return tile, starts, weights
