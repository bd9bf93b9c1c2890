"""Attention's two products on integer grids.

q, k and v have a scale per head (TinySAM, sec. 4.1). No runtime multiplies integers that have a scale per head, so each
head is brought to one common range by a factor before its tensor's one grid, and the factors come back as one broadcast
multiplication of each product. Attention weights lie in [0, 1] in every head: their grid, plain or twin, is per tensor.
"""

import operator
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.models.attention import AttentionProducts, Bias, summed
from sam_edge.models.grids import Grid, OnGrid, OnTwinGrid, TwinGrid

ROWS_AT_ONCE = 2**24
"""Attention weights held at a time by the simulation: 64 MB."""


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
    """Grid of the attention weights."""
    twin: TwinGrid | None = None
    """Their twin grid, used in place of `weights` where a form of the model takes twins."""
    bits: int = 8
    """Bits of all four operands."""

    def as_dict(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {
            "bits": self.bits,
            "scale": self.weights.scale,
            "zero_point": self.weights.zero_point,
            "split": asdict(self.twin) if self.twin else None,
            "heads": {"q": list(self.q), "k": list(self.k), "v": list(self.v)},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AttentionQuantization":
        """The products that `as_dict` described."""
        bits = values["bits"]
        q, k, v = (tuple(values["heads"][name]) for name in "qkv")
        twin = TwinGrid(**values["split"]) if values["split"] else None
        return cls(q, k, v, Grid(values["scale"], values["zero_point"], bits), twin, bits)


class OnHeadGrid(nn.Module):
    """Bring every head to [-1, 1] and round; the head's magnitude is left to be multiplied back."""

    ends: Float[Tensor, "heads 1 1"]
    factors: Float[Tensor, "heads 1 1"]

    def __init__(self, ends: tuple[float, ...], bits: int) -> None:
        super().__init__()
        self.register_buffer("ends", torch.tensor(ends)[:, None, None], persistent=False)
        self.register_buffer("factors", 1 / torch.tensor(ends)[:, None, None], persistent=False)
        self.grid = OnGrid(unit_grid(bits))

    def forward(self, x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads n d"]:
        """x / ends, on the grid."""
        return self.grid(x * self.factors)


def unit_grid(bits: int) -> Grid:
    """[-1, 1] in the steps that the symmetric dialect has too: integers from -(2^(bits-1) - 1)."""
    top = 2 ** (bits - 1) - 1
    return Grid(1 / top, top + 1, bits)


class QuantizedProducts(nn.Module):
    """`AttentionProducts` with q, k, v and the attention weights on grids."""

    def __init__(self, plan: AttentionQuantization) -> None:
        super().__init__()
        self.plan = plan
        self.q, self.k, self.v = (OnHeadGrid(ends, plan.bits) for ends in (plan.q, plan.k, plan.v))
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
        back = self.q.ends * self.k.ends * q.shape[-1] ** -0.5
        keys, values = self.k(k).transpose(-2, -1), self.v(v)
        queries = self.q(q)
        if torch.compiler.is_exporting():
            # a loop would fix the number of tokens
            return self._rows(queries @ keys * back, bias, values) * self.v.ends
        rows = max(1, ROWS_AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[2]))
        out = [
            self._rows(queries[:, :, at : at + rows] @ keys * back, _rows_of(bias, at, rows), values)
            for at in range(0, q.shape[2], rows)
        ]
        return torch.cat(out, 2) * self.v.ends

    def _rows(self, logits: Tensor, bias: Bias, values: Tensor) -> Tensor:
        weights = torch.softmax(biased(logits, bias), -1)
        parts = self.twin(weights) if self.twin is not None and self.use_twin else (self.weights(weights),)
        return reduce(operator.add, (part @ values for part in parts))


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
