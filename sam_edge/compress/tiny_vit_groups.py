"""Channel groups of TinyViT: what lies inside its blocks; embeddings differ from stage to stage and stay whole.

timm fuses q, k and v per head: rows [q, k, v] of head 0, then of head 1, and so on. No tracer sees through that, so
the groups are written down; a test removes channels of zero weight and looks for any change.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from sam_edge.compress.slices import ChannelGroup, Slice
from sam_edge.segment.config import ModelConfig, StageConfig

CONVOLUTION_ROUND_TO = 8
"""What MBConv widths are multiples of by default: these blocks have no heads to go by."""


def tiny_vit_groups(config: ModelConfig) -> list[ChannelGroup]:
    """MBConv and MLP hidden channels, and q/k and v channels of every attention."""
    return list(_groups(config))


def _groups(config: ModelConfig) -> Iterator[ChannelGroup]:
    number = 0
    for index, stage in enumerate(config.stages):
        for block in range(stage.depth):
            stem = f"stages.{index}.blocks.{block}."
            if stage.heads:
                yield from _attention(f"{stem}attn.", number, stage, block)
                yield ChannelGroup("mlp", number, 1, 1, stage.heads, _mlp(f"{stem}mlp.", stage.mlp_widths[block]))
            else:
                yield ChannelGroup("mlp", number, 1, 1, CONVOLUTION_ROUND_TO, _mbconv(stem, stage.mlp_widths[block]))
            number += 1


def _mlp(stem: str, hidden: int) -> tuple[Slice, ...]:
    channels = torch.arange(hidden)[:, None]
    return (
        Slice(f"{stem}fc1.weight", 0, channels),
        Slice(f"{stem}fc1.bias", 0, channels),
        Slice(f"{stem}fc2.weight", 1, channels),
    )


def _mbconv(stem: str, hidden: int) -> tuple[Slice, ...]:
    channels = torch.arange(hidden)[:, None]
    norm = ("weight", "bias", "running_mean", "running_var")
    through = [
        f"{stem}{conv}.{name}" for conv in ("conv1", "conv2") for name in ("conv.weight", *(f"bn.{n}" for n in norm))
    ]
    return (*(Slice(name, 0, channels) for name in through), Slice(f"{stem}conv3.conv.weight", 1, channels))


def _attention(stem: str, number: int, stage: StageConfig, block: int) -> Iterator[ChannelGroup]:
    heads = stage.heads
    key, value = stage.qk_widths[block] // heads, stage.v_widths[block] // heads
    first = torch.arange(heads) * (2 * key + value)
    q = first + torch.arange(key)[:, None]
    k = q + key
    v = (first[:, None] + 2 * key + torch.arange(value)).reshape(-1, 1)
    yield ChannelGroup("qk", number, heads, 1, heads, _rows(stem, torch.cat([q, k], 1)), _rows(stem, k))
    inputs = Slice(f"{stem}proj.weight", 1, torch.arange(heads * value)[:, None])
    yield ChannelGroup("v", number, heads, heads, heads, (*_rows(stem, v), inputs))


def _rows(stem: str, index: Int[Tensor, "channels each"]) -> tuple[Slice, ...]:
    return (Slice(f"{stem}qkv.weight", 0, index), Slice(f"{stem}qkv.bias", 0, index))
