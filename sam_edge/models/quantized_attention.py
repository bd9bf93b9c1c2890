"""Attention's two products on integer grids.

q, k and v have a scale per head (TinySAM, sec. 4.1). No runtime multiplies integers that have a scale per head, so each
head is brought to one common range by a factor before its tensor's one grid, and the factors come back as one broadcast
multiplication of each product. Attention weights are taken as shares of their row's largest, which the product is
multiplied by again: they lie in [0, 1] in every row, and their grid, plain or twin, is per tensor.
"""

import math
import operator
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from sam_edge.errors import QuantizationError
from sam_edge.models.attention import AttentionProducts, Bias, one_hot_places, summed
from sam_edge.models.grids import BranchGrid, Grid, OnGrid, OnTwinGrid, TwinGrid, dequantize

ROWS_AT_ONCE = 2**24
"""Attention weights held at a time by the simulation: 64 MB."""
BAND = 256
"""Rows of a head that graphs take at a time: 4 MB of logits at 4096 tokens."""
POSITION_BITS = 8
"""Of relative positions, whatever the bits of q and k: they share an 8-bit container."""
OPERANDS = ("q", "k", "v", "positions")
"""What has a range per head."""


@dataclass(frozen=True)
class AttentionQuantization:
    """How the products of one attention are quantized: an entry of config.json's `quantization`."""

    q: tuple[float, ...]
    """Per head: the magnitude at the end of the grid of q."""
    k: tuple[float, ...]
    """The same of k."""
    v: tuple[float, ...]
    """The same of v."""
    weights: Grid
    """Grid of the attention weights, as shares of their row's largest."""
    twin: TwinGrid | None = None
    """Their twin grid, used in place of `weights` where a form of the model takes twins."""
    bits: int = 8
    """Bits of all four operands."""
    positions: tuple[float, ...] = ()
    """Per head: the largest magnitude that relative positions keep; empty where there are none."""

    def __post_init__(self) -> None:
        """Raises QuantizationError for ends that no heads have, as a config.json may name them."""
        ends = (self.q, self.k, self.v, *([self.positions] if self.positions else []))
        if not self.q or any(len(values) != len(self.q) for values in ends):
            raise QuantizationError(
                f"q, k, v and positions must have an end per head, got {[*map(len, ends)]} of them."
            )
        if not all(0 < value < math.inf for values in ends for value in values):
            raise QuantizationError("the ends of the grids of q, k, v and positions must be positive numbers.")

    def as_dict(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {
            "bits": self.bits,
            "scale": self.weights.scale,
            "zero_point": self.weights.zero_point,
            "split": asdict(self.twin) if self.twin else None,
            "shares_of_peak": True,
            "heads": {name: list(getattr(self, name)) for name in OPERANDS},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AttentionQuantization":
        """The products that `as_dict` described.

        Raises:
            QuantizationError: an entry of the time when the grid was of the weights themselves.
        """
        if not values.get("shares_of_peak"):
            raise QuantizationError(
                "this checkpoint's attention was quantized by an earlier sam-edge: quantize its float checkpoint again."
            )
        bits = values["bits"]
        ends = {name: tuple(values["heads"].get(name, ())) for name in OPERANDS}
        twin = TwinGrid(**values["split"]) if values["split"] else None
        return cls(**ends, weights=Grid(values["scale"], values["zero_point"], bits), twin=twin, bits=bits)


class OnHeadGrid(nn.Module):
    """Bring every head to [-1, 1] and round; the head's magnitude is left to be multiplied back."""

    ends: Float[Tensor, "heads 1 1"]
    factors: Float[Tensor, "heads 1 1"]

    def __init__(self, ends: tuple[float, ...], bits: int, *, right: bool) -> None:
        """`right` for the right-hand operand of a product."""
        super().__init__()
        self.register_buffer("ends", torch.tensor(ends)[:, None, None], persistent=False)
        self.register_buffer("factors", 1 / torch.tensor(ends)[:, None, None], persistent=False)
        self.grid = OnGrid(unit_grid(bits, right=right))

    def forward(self, x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
        """x / ends, on the grid."""
        return self.grid(x * self.factors)


def unit_grid(bits: int, *, right: bool = False) -> BranchGrid:
    """[-1, 1] in 2^(bits-1) - 1 steps to either side, and one step more below."""
    top = 2 ** (bits - 1) - 1
    return BranchGrid(1 / top, -top - 1, top, right)


class QuantizedProducts(nn.Module):
    """`AttentionProducts` with q, k, v, relative positions and the attention weights on grids."""

    def __init__(self, plan: AttentionQuantization) -> None:
        super().__init__()
        self.plan = plan
        self.q = OnHeadGrid(plan.q, plan.bits, right=False)
        self.k, self.v = (OnHeadGrid(ends, plan.bits, right=True) for ends in (plan.k, plan.v))
        self.fold = Fold(plan) if plan.positions else None
        self.weights = OnGrid(plan.weights)
        self.twin = OnTwinGrid(plan.twin) if plan.twin else None
        self.use_twin = True
        self.use_grids = True
        self.in_float = AttentionProducts()

    def forward(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        v: Float[Tensor, "b heads m dv"],
        bias: Bias = None,
    ) -> Float[Tensor, "b heads n dv"]:
        """softmax(q k^T / sqrt(d) + bias) v."""
        if not self.use_grids:
            return self.in_float(q, k, v, bias)
        if self.fold is not None and isinstance(bias, tuple):
            rows, columns, back = self.fold(q, k, *bias)
            if torch.compiler.is_exporting():
                return self._head_by_head(rows, columns, v, back)
            queries, keys = self.fold.rows(torch.cat(rows, -1)), self.fold.columns(torch.cat(columns, -1)).mT
            bias = None
        else:
            back = self.q.ends * self.k.ends * q.shape[-1] ** -0.5
            queries, keys = self.q(q), self.k(k).mT
        values = self.v(v)
        if torch.compiler.is_exporting():
            # a loop would fix the number of tokens
            return self._rows(queries @ keys * back, bias, values) * self.v.ends
        count = max(1, ROWS_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
        out = [
            self._rows(queries[:, :, at : at + count] @ keys * back, _rows_of(bias, at, count), values)
            for at in range(0, q.shape[2], count)
        ]
        return torch.cat(out, 2) * self.v.ends

    def _rows(self, logits: Tensor, bias: Bias, values: Tensor) -> Tensor:
        shares, peak = shares_of_peak(torch.softmax(biased(logits, bias), -1))
        parts = self.twin(shares) if self.twin is not None and self.use_twin else (self.weights(shares),)
        return reduce(operator.add, (part @ values for part in parts)) * peak

    def _head_by_head(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], v: Tensor, back: Tensor) -> Tensor:
        """The form that graphs take: a Scan over heads, whose scales are then per tensor, in bands of rows.

        Passes over all N x N logits of all heads cost more than the products themselves (memory); a band stays in a
        core's cache.
        """
        fold, values = self.fold, self.v
        assert fold is not None
        queries = torch.cat([fold.rows.integers(part) for part in rows], -1)
        keys = torch.cat([fold.columns.integers(part) for part in columns], -1).mT
        heads = [queries, keys, values.grid.integers(v * values.factors)]
        scales = [(fold.columns.scale * back).flatten(), (values.grid.scale * values.ends).flatten()]

        def attend(carry: Tensor, head: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            queries, keys, integers, key_scale, value_scale = head
            keys = dequantize(keys, key_scale, fold.columns.zero_point, 0)
            integers = dequantize(integers, value_scale, values.grid.zero_point, 0)
            bands = (dequantize(band, fold.rows.scale, fold.rows.zero_point, 0) for band in queries.split(BAND, 1))
            return carry.clone(), torch.cat([self._rows(band @ keys, None, integers) for band in bands], 1)

        # a scan has to carry something
        _, out = scan(attend, torch.zeros(1), (*(x.transpose(0, 1).contiguous() for x in heads), *scales))
        return out.transpose(0, 1)


class Fold(nn.Module):
    """Relative positions as more columns of q and k, so that one integer product gives the whole logits.

    q k^T / sqrt(d) + rel_h + rel_w = [q, rel_h, rel_w] [k / sqrt(d), E_h, E_w]^T, where row m of E_h (E_w) is one-hot
    at the grid row (column) of key m: no addition passes over the N x N logits. Positions fill the 8 bits of their
    container whatever the bits of q and k, and a one-hot is a whole number of steps, so that it does not round.
    """

    ends: Float[Tensor, "3 heads 1 1"]

    def __init__(self, plan: AttentionQuantization) -> None:
        super().__init__()
        self.top = 2 ** (plan.bits - 1) - 1
        ends = torch.tensor([plan.q, plan.k, plan.positions])[..., None, None]
        self.register_buffer("ends", ends, persistent=False)
        self.rows = OnGrid(BranchGrid(1 / self.top, -128, 127))
        self.columns = OnGrid(BranchGrid(1 / self.top, -128, 127, signed=True))

    def forward(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        rel_h: Float[Tensor, "b heads n h"],
        rel_w: Float[Tensor, "b heads n w"],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Float[Tensor, "heads 1 1"]]:
        """Parts of the rows and of the columns, yet to be rounded, and what their product is to be multiplied by."""
        q_end, k_end, end = self.ends
        step, most = 1 / self.top, 127 / self.top
        scale = q.shape[-1] ** -0.5
        # where positions are larger than any product of q and k can be, k takes less of its range
        back = torch.maximum(q_end * k_end * scale, end / most**2)
        spot = (end / (most * step * back)).ceil().clamp(1, 127) * step
        spots = (spot * one_hot_places(rel_h, rel_w)).expand(len(k), -1, -1, -1)
        factor = 1 / (spot * back)
        rows = self._narrow(q * (1 / q_end)), rel_h * factor, rel_w * factor
        return rows, (self._narrow(k * (q_end * scale / back)), spots), back

    def _narrow(self, x: Tensor) -> Tensor:
        return x if self.top == 127 else x.clamp(-1, 1)


def shares_of_peak(weights: Float[Tensor, "*b n m"]) -> tuple[Float[Tensor, "*b n m"], Float[Tensor, "*b n 1"]]:
    """Each row of attention weights as shares of its largest, and that.

    These lie on the grid: one step for all weights would be coarse for rows that spread over a thousand keys.
    """
    peak = weights.amax(-1, keepdim=True)
    return weights / peak, peak


def biased(logits: Float[Tensor, "*b n m"], bias: Bias) -> Float[Tensor, "*b n m"]:
    """Logits with a bias of any form."""
    if bias is None:
        return logits
    if isinstance(bias, tuple):
        return logits + summed(*bias)
    return logits.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else logits + bias


def _rows_of(bias: Bias, at: int, rows: int) -> Bias:
    if isinstance(bias, tuple):
        return bias[0][..., at : at + rows, :], bias[1][..., at : at + rows, :]
    # a mask over keys has one row for all
    return bias if bias is None or bias.shape[-2] == 1 else bias[..., at : at + rows, :]
