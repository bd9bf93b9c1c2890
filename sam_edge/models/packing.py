"""Weights of fewer than 8 bits without gaps between them: 6-bit ones lie 4 in 3 bytes, 4-bit ones 2 in 1.

This is how they are stored. No runtime computes on 6 bits: in memory and in graphs every weight has a byte.
"""

import numpy as np
import torch
from jaxtyping import Int8, UInt8
from torch import Tensor


def pack(integers: Int8[Tensor, "*shape"], bits: int) -> UInt8[Tensor, "n"]:
    """The low `bits` bits of every integer, one after the other, first bit first; zeros fill the last byte."""
    values = integers.detach().cpu().numpy().ravel().view(np.uint8)
    each = np.unpackbits(values[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each.ravel(), bitorder="little"))


def unpack(packed: UInt8[Tensor, "n"], bits: int, shape: torch.Size) -> Int8[Tensor, "*shape"]:
    """What `pack` was given, in two's complement of `bits` bits."""
    count = shape.numel()
    each = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    values = np.packbits(each, axis=1, bitorder="little")[:, 0].astype(np.int16)
    values -= (values >> (bits - 1)) << bits
    return torch.from_numpy(values.astype(np.int8)).reshape(shape)
