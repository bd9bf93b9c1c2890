"""Scales of integer weights."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from sam_edge.errors import QuantizationError


def check_bits(bits: int, what: str) -> None:
    """Raises QuantizationError unless `bits` is from 2 to 8."""
    if not 2 <= bits <= 8:
        raise QuantizationError(f"{what} bits must be between 2 and 8, got {bits}.")


def symmetric_scale(weight: Float[Tensor, "out rest"], bits: int) -> Float[Tensor, "out"]:
    """Min-max scale per row: the largest magnitude lies on the last step, 2^(bits-1) - 1."""
    check_bits(bits, "weight")
    peak = weight.abs().amax(1)
    return torch.where(peak > 0, peak, torch.ones_like(peak)) / (2 ** (bits - 1) - 1)


def quantize_weight(
    weight: Float[Tensor, "out *rest"], bits: int, scale: Float[Tensor, "out"] | None = None
) -> tuple[Int8[Tensor, "out *rest"], Float[Tensor, "out"]]:
    """Symmetric integers and their scale per output channel (first axis); min-max scales unless some are given."""
    check_bits(bits, "weight")
    if scale is None:
        scale = symmetric_scale(weight.flatten(1), bits)
    top = 2 ** (bits - 1) - 1
    steps = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round().clamp(-top, top)
    return steps.to(torch.int8), scale
