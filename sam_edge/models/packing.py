"""How a quantized model lies on the disk: narrow integers without gaps, and a table of positions in bytes.

6-bit weights lie 4 in 3 bytes, 4-bit ones 2 in 1. No runtime computes on 6 bits: in memory and in graphs every weight
has a byte.
"""

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

import sam_edge.kernels.unpack as unpack_kernel


def pack(integers: Int8[Tensor, "*shape"], bits: int) -> UInt8[Tensor, "n"]:
    """The low `bits` bits of every integer, one after the other, first bit first; zeros fill the last byte."""
    return torch.from_numpy(unpack_kernel.pack(integers.detach().cpu().numpy(), bits))


def unpack(packed: UInt8[Tensor, "n"], bits: int, shape: torch.Size) -> Int8[Tensor, "*shape"]:
    """What `pack` was given, in two's complement of `bits` bits."""
    return torch.from_numpy(unpack_kernel.reference(packed.numpy(), shape.numel(), bits)).reshape(shape)


def to_bytes(table: Float[Tensor, "*n c"]) -> tuple[Int8[Tensor, "*n c"], Int8[Tensor, "c"]]:
    """A table in 8 bits, and of each channel the power of two that is its step.

    Such values are exact in halves, too, and of values that lie on their steps already nothing changes.
    """
    largest = table.detach().abs().flatten(0, -2).amax(0).double()
    # from the smallest half to the largest
    exponents = (largest / 127).log2().ceil().clamp(-24, 9).to(torch.int8)
    return (table.detach() / _steps(exponents)).round().clamp(-127, 127).to(torch.int8), exponents


def from_bytes(integers: Int8[Tensor, "*n c"], exponents: Int8[Tensor, "c"]) -> Float[Tensor, "*n c"]:
    """The table that `to_bytes` stored."""
    return integers.float() * _steps(exponents)


def _steps(exponents: Int8[Tensor, "c"]) -> Float[Tensor, "c"]:
    return torch.ldexp(torch.ones(exponents.shape, device=exponents.device), exponents.int())
