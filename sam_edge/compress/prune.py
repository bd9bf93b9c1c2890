"""Structured pruning of an image encoder: score, choose, cut (SlimSAM, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sam_edge.compress.groups import find_groups
from sam_edge.compress.slices import ALL_PARTS, ChannelGroup, Part, group_score, removed
from sam_edge.compress.widths import PruneOptions, Score, choose
from sam_edge.errors import CompressionError
from sam_edge.models.sam import EdgeSam, build_encoder
from sam_edge.models.timm_encoder import narrowed_widths
from sam_edge.models.vit import split_attention
from sam_edge.segment.config import BlockConfig, ModelConfig, StageConfig


def prepare(model: EdgeSam) -> None:
    """Take q, k and v of a `vit` apart, in place and without changing the function.

    Raises:
        CompressionError: a quantized model.
    """
    if model.config.quantization is not None:
        raise CompressionError("a quantized model cannot be pruned: compress first, then quantize.")
    if model.config.arch == "vit":
        split_attention(model.image_encoder)
        model.config = model.config.replace(arch="slim_vit")


def check_ratio(model: EdgeSam, options: PruneOptions) -> None:
    """Make sure that something is left of every layer, before hours are spent on finding out what.

    Raises:
        CompressionError: a ratio outside (0, 1), or nothing left.
    """
    if not 0 < options.ratio < 1:
        raise CompressionError(f"ratio must be between 0 and 1 (both excluded), got {options.ratio}.")
    groups = find_groups(model)
    choose(groups, [torch.ones(group.sets, group.per_set) for group in groups], options)


def prune_encoder(
    model: EdgeSam,
    options: PruneOptions,
    parts: Sequence[Part] = ALL_PARTS,
    saliency: Mapping[str, Tensor] | None = None,
) -> None:
    """Remove the least important channels of the `parts` in place; `model.config` follows.

    All heads lose the same channels of q and k, so that the relative-position tables survive: their columns are kept
    with the channels that they multiply. Of v every head loses its own. The old attention scale is folded into k.

    Args:
        saliency: what each weight of the encoder is worth, by name; magnitude and random importance need none.

    Raises:
        CompressionError: a ratio outside (0, 1), a quantized model, no saliency, or nothing left of a layer; the
            model is then unchanged.
    """
    if not 0 < options.ratio < 1:
        raise CompressionError(f"ratio must be between 0 and 1 (both excluded), got {options.ratio}.")
    prepare(model)
    groups = [group for group in find_groups(model) if group.part in parts]
    kept = choose(groups, _scores(model, groups, options, saliency), options)
    state = removed(model.image_encoder.state_dict(), groups, kept)
    if model.config.backbone is not None:
        widths = narrowed_widths(model.config, state)
        config = model.config.replace(backbone=replace(model.config.backbone, widths=widths))
    else:
        config = _narrowed(
            model.config,
            {(group.part, group.block): keep.shape[1] * group.heads for group, keep in zip(groups, kept, strict=True)},
        )
    device = next(model.parameters()).device
    encoder = build_encoder(config).to(device)
    encoder.load_state_dict(state)
    encoder.train(model.image_encoder.training)
    model.image_encoder, model.config = encoder, config


def _scores(
    model: EdgeSam, groups: Sequence[ChannelGroup], options: PruneOptions, saliency: Mapping[str, Tensor] | None
) -> list[Score]:
    if options.importance == "random":
        generator = torch.Generator().manual_seed(options.seed)
        return [torch.rand(group.sets, group.per_set, generator=generator).double() for group in groups]
    if options.importance == "magnitude":
        saliency = {name: weight.detach().square() for name, weight in model.image_encoder.named_parameters()}
    if saliency is None:
        raise CompressionError(f"{options.importance} importance needs gradients: accumulate them on pictures first.")
    return [group_score(group, saliency) for group in groups]


def _narrowed(config: ModelConfig, widths: Mapping[tuple[str, int], int]) -> ModelConfig:
    """The config with new widths by (part, block)."""

    def narrowed(block: BlockConfig, number: int) -> BlockConfig:
        return replace(
            block,
            embed=widths.get(("embedding", -1), block.embed),
            qk=widths.get(("qk", number), block.qk),
            v=widths.get(("v", number), block.v),
            mlp=widths.get(("mlp", number), block.mlp),
        )

    blocks = tuple(narrowed(block, number) for number, block in enumerate(config.blocks))
    stages, first = [], 0
    for stage in config.stages:
        stages.append(_narrowed_stage(stage, first, widths))
        first += stage.depth
    return config.replace(blocks=blocks, stages=tuple(stages))


def _narrowed_stage(stage: StageConfig, first: int, widths: Mapping[tuple[str, int], int]) -> StageConfig:
    def along(part: str, now: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(widths.get((part, first + index), width) for index, width in enumerate(now))

    narrowed = replace(stage, mlp=along("mlp", stage.mlp_widths))
    if not stage.heads:
        return narrowed
    return replace(narrowed, qk=along("qk", stage.qk_widths), v=along("v", stage.v_widths))
