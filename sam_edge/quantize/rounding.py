"""Rounding weights so that those yet to be rounded make up for the error (GPTQ: Frantar et al. 2023, after OBQ).

The error of a layer's output over its rows x is d^T H d for every output channel's error d of its weights, with
H = sum of x x^T: the same for all channels, and so is the order in which inputs are rounded, the largest on the
diagonal first. What rounding an input leaves, the inputs after it take on, by the Cholesky factor of H's inverse.
H is K-FAC's factor of a layer's inputs; that of its outputs, the task's mean curvature, would multiply a channel's
error as a whole, whatever is rounded how (see `search`).
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from sam_edge.models.quantized import LayerQuantization
from sam_edge.quantize.samples import Seen, by_column, from_matrix, weight_matrix
from sam_edge.quantize.search import on_grid

RIDGE = 0.01
"""Added to H's diagonal, as a share of its mean: directions that few rows have are not free."""
BLOCK = 128
"""Inputs after which all others are brought up to date: till then only those of the block are, as the cache holds."""


def compensated_weight(
    module: nn.Module, seen: Seen, plan: LayerQuantization, scale: Float[Tensor, "out"]
) -> Int8[Tensor, "*shape"]:
    """A float layer's weights as integers, in its own layout, for the grids and scales that were found."""
    rows = on_grid(seen.joined().a, plan.twin or plan.input)
    integers = round_in_turn(weight_matrix(module), rows.mT @ rows, by_column(module, scale), plan.bits)
    return from_matrix(module, integers)


def round_in_turn(
    b: Float[Tensor, "g k n"], hessian: Float[Tensor, "g k k"], scale: Float[Tensor, "g 1 n"], bits: int
) -> Int8[Tensor, "g k n"]:
    """Integers q that make d^T H d small for each column d of `q scale - b`, and no larger than the nearest do."""
    top = 2 ** (bits - 1) - 1
    nearest = (b / scale).round().clamp(-top, top)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    order = diagonal.argsort(-1, descending=True)[..., None]
    damped = hessian + torch.diag_embed((RIDGE * diagonal.mean(-1, keepdim=True)).clamp(min=1e-30).expand_as(diagonal))
    ordered = damped.take_along_dim(order, 1).take_along_dim(order.mT, 2).double()
    factor = torch.linalg.cholesky(torch.linalg.inv(ordered), upper=True).to(b.dtype)
    left, integers = b.take_along_dim(order, 1), torch.empty_like(b)
    inputs = b.shape[1]
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        owed = torch.empty_like(left[:, first:last])
        for at in range(first, last):
            here = slice(at, at + 1)
            integers[:, here] = (left[:, here] / scale).round().clamp(-top, top)
            off = (left[:, here] - integers[:, here] * scale) / factor[:, here, here]
            left[:, at:last] -= factor[:, here, at:last].mT * off
            owed[:, at - first : at - first + 1] = off
        left[:, last:] -= factor[:, first:last, last:].mT @ owed
    found = torch.empty_like(b).scatter_(1, order.expand_as(b), integers)
    worse = _error(found * scale - b, hessian) > _error(nearest * scale - b, hessian)
    return torch.where(worse, nearest, found).to(torch.int8)


def _error(off: Float[Tensor, "g k n"], hessian: Float[Tensor, "g k k"]) -> Float[Tensor, "g 1 n"]:
    return (off * (hessian @ off)).sum(1, keepdim=True)
