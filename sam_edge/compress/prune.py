"""One-step structured pruning of a ViT encoder: the papers' baseline (SlimSAM, section 3.1 and figure 6)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch_pruning as tp
from jaxtyping import Float
from segment_anything.modeling.image_encoder import Block
from torch import Tensor, nn

from sam_edge.compress.groups import EncoderGroups, Root, find_groups
from sam_edge.errors import CompressionError
from sam_edge.models.config import BlockConfig
from sam_edge.models.quantized import prepare_for_quantization
from sam_edge.models.sam import EdgeSam
from sam_edge.models.vit import SplitAttention

ImportanceName = Literal["magnitude", "random"]
Part = Literal["embedding", "qk", "v", "mlp"]

ALL_PARTS: tuple[Part, ...] = ("embedding", "qk", "v", "mlp")


@dataclass(frozen=True)
class PruneOptions:
    """How much is removed, and by what measure."""

    ratio: float = 0.5
    """Share of channels to remove from every group, in (0, 1)."""
    importance: ImportanceName = "magnitude"
    """`magnitude` (summed squares of all coupled weights) or `random`."""
    round_to: int = 0
    """Kept widths are rounded down to a multiple of this; 0 takes the number of heads, as the paper's code does."""
    seed: int = 0
    """Seed of random importance."""


def prune_encoder(model: EdgeSam, options: PruneOptions, parts: Sequence[Part] = ALL_PARTS) -> None:
    """Remove the least important channels of the `parts` in place; `model.config` follows.

    Every head of a block loses the same of its channels, so that the relative-position tables survive: their
    columns are kept with the channels that they multiply. The old attention scale is folded into k.

    Raises:
        CompressionError: a ratio outside (0, 1), an encoder that is no ViT, a quantized model, or nothing left.
    """
    if not 0 < options.ratio < 1:
        raise CompressionError(f"ratio must be between 0 and 1 (both excluded), got {options.ratio}.")
    if model.config.arch == "tiny_vit":
        raise CompressionError("compress prunes ViT encoders; for vit_t, distil a student instead.")
    if model.config.quantization is not None:
        raise CompressionError("a quantized model cannot be pruned: compress first, then quantize.")
    prepare_for_quantization(model)
    encoder = model.image_encoder
    groups = find_groups(encoder)
    scores = _scores(groups, options, parts)
    kept = {root: _kept_channels(root, scores[root], groups, model, options) for root in scores}
    for block, q in zip(encoder.blocks, groups.qk, strict=True):
        if q in kept:
            _keep_head_channels(block.attn, kept[q])
    for root, keep in kept.items():
        removed = sorted(set(range(scores[root].numel())) - set(keep))
        if removed:
            groups.group(root, removed).prune()
    model.config = model.config.replace(
        blocks=tuple(
            _measured(block, config) for block, config in zip(encoder.blocks, model.config.blocks, strict=True)
        )
    )


def _scores(
    groups: EncoderGroups, options: PruneOptions, parts: Sequence[Part]
) -> dict[Root, Float[Tensor, "channels"]]:
    """Importance of each channel of each root of the `parts`, before anything is removed."""
    measure = tp.importance.GroupMagnitudeImportance(p=2) if options.importance == "magnitude" else None
    roots = [root for part in parts for root in groups.roots(part)]
    generator = torch.Generator().manual_seed(options.seed)
    scores = {}
    for root in roots:
        channels = root.weight.shape[0]
        if measure is None:
            scores[root] = torch.rand(channels, generator=generator)
        else:
            scores[root] = measure(groups.group(root, list(range(channels)))).detach().cpu()
    return scores


def _kept_channels(
    root: Root, score: Tensor, groups: EncoderGroups, model: EdgeSam, options: PruneOptions
) -> list[int]:
    """The channels of a root that stay, in order."""
    heads = model.config.blocks[0].heads
    round_to = options.round_to or heads
    if root in groups.qk or root in groups.v:
        index = (groups.qk if root in groups.qk else groups.v).index(root)
        heads = model.config.blocks[index].heads
        per_head = score.numel() // heads
        # heads stay equal, so the width can only move in steps of one channel per head
        step = round_to // math.gcd(round_to, heads)
        keep = _best(score.view(heads, per_head).sum(0), options.ratio, step)
        return [head * per_head + channel for head in range(heads) for channel in keep]
    return _best(score, options.ratio, round_to)


def _best(score: Float[Tensor, "channels"], ratio: float, round_to: int) -> list[int]:
    count = score.numel()
    # the epsilon keeps 0.77 x 768 from losing a rounding unit to binary fractions
    keep = math.floor(count * (1 - ratio) + 1e-6) // round_to * round_to
    if keep < 1:
        raise CompressionError(f"ratio {ratio} leaves nothing of {count} channels: lower --ratio or --round-to.")
    return sorted(score.argsort(descending=True)[:keep].tolist())


def _keep_head_channels(attention: SplitAttention, kept: list[int]) -> None:
    """Slice the relative-position tables along the kept head channels, and fold the old scale into k."""
    old, new = attention.q.out_features // attention.heads, len(kept) // attention.heads
    with torch.no_grad():
        fold = math.sqrt(new / old)
        attention.k.weight.mul_(fold)
        attention.k.bias.mul_(fold)
    if attention.use_rel_pos:
        # the kept channels repeat from head to head, so the first head's are those of the shared tables
        columns = kept[:new]
        attention.rel_pos_h = nn.Parameter(attention.rel_pos_h.detach()[:, columns].clone())
        attention.rel_pos_w = nn.Parameter(attention.rel_pos_w.detach()[:, columns].clone())


def _measured(block: Block, config: BlockConfig) -> BlockConfig:
    """The block's config with the widths that its layers now have."""
    attention = cast(SplitAttention, block.attn)
    return replace(
        config,
        embed=attention.q.in_features,
        qk=attention.q.out_features,
        v=attention.v.out_features,
        mlp=block.mlp.lin1.out_features,
    )
