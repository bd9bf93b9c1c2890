"""Integer grids for activations: ONNX's two operators, and the values that an activation is rounded to.

The two custom operators are, to the letter, ONNX's QuantizeLinear and DequantizeLinear, and the exporter writes them as
such. Grids come in two dialects: `cpu` (asymmetric, uint8) and `tensorrt` (symmetric, int8, zero point 0).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sam_edge.errors import QuantizationError

Dialect = Literal["cpu", "tensorrt"]


@torch.library.custom_op("sam_edge::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """ONNX QuantizeLinear, per tensor: round half to even, add the zero point, saturate to its type."""
    limits = torch.iinfo(zero_point.dtype)
    return ((x / scale).round() + zero_point).clamp(limits.min, limits.max).to(zero_point.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("sam_edge::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """ONNX DequantizeLinear: (q - zero point) x scale, along `axis` where the scale has more than one entry."""
    shape = [1] * q.ndim
    if scale.ndim:
        shape[axis] = -1
    return (q.float() - zero_point.float().reshape(shape)) * scale.reshape(shape)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


@dataclass(frozen=True)
class Grid:
    """An asymmetric grid of 2^bits values for an activation: value = (q - zero_point) x scale, q from 0."""

    scale: float
    zero_point: int
    bits: int = 8

    def __post_init__(self) -> None:
        """Raises QuantizationError for numbers that make no grid, as a config.json may have them."""
        _check_steps(self.scale, self.bits)
        if self.zero_point not in range(2**self.bits):
            raise QuantizationError(
                f"a zero point must be an integer from 0 to {2**self.bits - 1}, got {self.zero_point!r:.40}."
            )

    @classmethod
    def of_range(cls, low: float, high: float, bits: int = 8) -> "Grid":
        """The grid whose ends are `low` and `high`, widened to hold 0 exactly (Jacob et al. 2018, eq. 3)."""
        low, high = min(low, 0.0), max(high, 0.0)
        steps = 2**bits - 1
        scale = max(high - low, 1e-12) / steps
        return cls(scale, min(max(round(-low / scale), 0), steps), bits)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value on the grid."""
        return -self.zero_point * self.scale, (2**self.bits - 1 - self.zero_point) * self.scale

    def in_dialect(self, dialect: Dialect) -> tuple[float, int, int, int, torch.dtype]:
        """Scale, zero point, smallest and largest integer, and container of this grid in a dialect."""
        if dialect == "cpu":
            return self.scale, self.zero_point, 0, 2**self.bits - 1, torch.uint8
        top = 2 ** (self.bits - 1) - 1
        low, high = self.range
        return max(-low, high) / top, 0, -top - 1, top, torch.int8


def _check_steps(scale: float, bits: int) -> None:
    if bits not in range(1, 9):
        raise QuantizationError(f"a grid's bits must be between 1 and 8, got {bits!r:.40}.")
    if not 0 < scale < math.inf:
        raise QuantizationError(f"a grid's scale must be a positive number, got {scale!r:.40}.")


@dataclass(frozen=True)
class TwinGrid:
    """Two steps for a lopsided activation: fine ones below `split`, coarse ones above (PTQ4ViT; TinySAM, sec. 3.3).

    A value is min(x, split) on fine steps plus max(x - split, 0) on coarse ones. The coarse step is the fine one
    shifted by `shift` bits and `split` is a whole number of coarse steps, so the sum is an integer number of fine
    steps: one accumulator and a shift serve both. (The released code of TinySAM adds two branches that both count up
    to `split`; every value above it comes out `split` too large.)

    Post-GELU activations split at 0: half the codes lie on each side. Post-softmax ones split where the fine codes,
    half of all, end; so both have 2^bits codes in all.
    """

    scale: float
    """Coarse step."""
    shift: int
    """Bits between the coarse and the fine step."""
    split_steps: int
    """The split, in coarse steps; 0, or half the codes shifted right by `shift`."""
    bits: int = 8

    def __post_init__(self) -> None:
        """Raises QuantizationError for numbers that make no grid, as a config.json may have them."""
        _check_steps(self.scale, self.bits)
        for name, steps in (("shift", self.shift), ("split_steps", self.split_steps)):
            if steps not in range(2**self.bits):
                raise QuantizationError(f"{name} must be an integer from 0 to {2**self.bits - 1}, got {steps!r:.40}.")

    @classmethod
    def signed(cls, scale: float, shift: int, bits: int) -> "TwinGrid":
        """For what has a small negative part: split at 0."""
        return cls(scale, shift, 0, bits)

    @classmethod
    def unsigned(cls, scale: float, shift: int, bits: int) -> "TwinGrid":
        """For values from 0 that crowd at 0: split where the fine codes end."""
        return cls(scale, shift, 2 ** (bits - 1) >> shift, bits)

    @property
    def fine(self) -> float:
        """Fine step."""
        return self.scale / 2**self.shift

    @property
    def split(self) -> float:
        """Where the steps change."""
        return self.split_steps * self.scale

    @property
    def codes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Smallest and largest integer of the fine and of the coarse branch."""
        half = 2 ** (self.bits - 1)
        return ((0, half) if self.split_steps else (-half, 0)), (0, half - 1 - self.split_steps)

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The fine and the coarse part of the nearest values, in float; their sum is x on the grid."""
        fine, coarse = self.codes
        low = (x.clamp(max=self.split) / self.fine).round().clamp(*fine) * self.fine
        high = ((x - self.split) / self.scale).round().clamp(*coarse) * self.scale
        return low, high


@dataclass(frozen=True)
class BranchGrid:
    """Integers from `low` to `high` times a step that both dialects share: a twin grid's branch, or [-1, 1]."""

    scale: float
    low: int
    high: int
    signed: bool = False
    """int8 in both dialects: what a right-hand operand is, since CPUs multiply uint8 by int8 fastest (VNNI)."""

    def in_dialect(self, dialect: Dialect) -> tuple[float, int, int, int, torch.dtype]:
        """As `Grid.in_dialect`; an int8 container ends at 127."""
        if dialect == "cpu" and not self.signed:
            return self.scale, -self.low, 0, self.high - self.low, torch.uint8
        return self.scale, 0, self.low, min(self.high, 127), torch.int8


class OnGrid(nn.Module):
    """Round an activation onto a grid."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid | BranchGrid) -> None:
        super().__init__()
        self.grid = grid
        self.set_dialect("cpu")

    def set_dialect(self, dialect: Dialect) -> None:
        """Use the grid's form in `dialect`."""
        self.dialect: Dialect = dialect
        scale, zero_point, low, high, container = self.grid.in_dialect(dialect)
        limits = torch.iinfo(container)
        # narrower grids than their container saturate early
        narrow = (low, high) != (limits.min, limits.max)
        self.clip = ((low - zero_point) * scale, (high - zero_point) * scale) if narrow else None
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32), persistent=False)
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=container), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values on the grid; gradients pass straight through, but not where values are clipped."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._round(x)
        given = x.detach()
        off = self._round(given) - given
        # a shade more than half a step, for what rounds at the edge
        return torch.where(off.abs() <= 0.501 * self.scale, x, given) + off

    def integers(self, x: Tensor) -> Tensor:
        """The nearest values' integers, in their container."""
        return quantize(x if self.clip is None else x.clamp(*self.clip), self.scale, self.zero_point)

    def _round(self, x: Tensor) -> Tensor:
        return dequantize(self.integers(x), self.scale, self.zero_point, 0)


class OnTwinGrid(nn.Module):
    """Round an activation onto a twin grid: the fine and the coarse part, each behind its own quantizer."""

    def __init__(self, grid: TwinGrid) -> None:
        super().__init__()
        self.grid = grid
        fine, coarse = grid.codes
        self.fine, self.coarse = OnGrid(BranchGrid(grid.fine, *fine)), OnGrid(BranchGrid(grid.scale, *coarse))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts; a product with x is the sum of the products with each."""
        return self.fine(x), self.coarse(x - self.grid.split if self.grid.split_steps else x)
