"""Embeddings in one or two bytes per value."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

StoredPrecision = Literal["fp16", "int8"]

HALF_MAX = 65504.0


def pack(embeddings: Float[Tensor, "n c g g"], precision: StoredPrecision) -> dict[str, Tensor]:
    """`values` as stored, and for int8 the `scales` N x C: symmetric, one per view and channel.

    fp16 rounds by at most 2^-11 of a value, int8 by half a step of the channel's largest value / 127.
    """
    embeddings = embeddings.float()
    if precision == "fp16":
        return {"values": embeddings.clamp(-HALF_MAX, HALF_MAX).half()}
    scales = (embeddings.abs().amax((-2, -1)) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return {"values": (embeddings / scales[..., None, None]).round().to(torch.int8), "scales": scales}


def unpack(values: Tensor, scales: Float[Tensor, "n c"] | None = None) -> Float[Tensor, "n c g g"]:
    """What `pack` packed, in float32."""
    return values.float() if scales is None else values.float() * scales[..., None, None]
