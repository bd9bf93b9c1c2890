"""Multiply-accumulates of the split decoder, part by part, beside the plain walk's: counted on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sam_edge.models.factored import FactoredDecoder
from sam_edge.models.sam import EdgeSam
from sam_edge.models.split import PlainSplit, SplitDecoder
from sam_edge.segment.config import ModelConfig


def _product(start: torch.Size, x: torch.Size, y: torch.Size, **_: Any) -> int:
    """Operations of `start += x @ y`, from the shapes."""
    return 2 * x.numel() * y[-1]


_IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}
"""Products that torch's counter leaves out."""


@dataclass(frozen=True)
class SplitCost:
    """MACs of the parts of a split decoder, for prompts of a single point."""

    prepare: int
    """Once per image."""
    predict: int
    """Per prompt set: predicted IoU."""
    upscale: int
    """Per set that has a wanted mask."""


@dataclass(frozen=True)
class DecoderCosts:
    """MACs of one point about one image, in the three ways there are."""

    plain: int
    """The whole decoder, per prompt."""
    shared: SplitCost
    """The plain walk with the first layer's projections of the image shared."""
    factored: SplitCost
    """With the image tokens kept as factors."""


def decoder_costs(config: ModelConfig) -> DecoderCosts:
    """Count the decoder's MACs for the model that `config` describes."""
    with torch.device("meta"), torch.no_grad():
        decoder = EdgeSam(config).decoder
        embeddings = torch.zeros(1, config.decoder.dim, config.grid, config.grid)
        coords, labels = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, dtype=torch.long)

        def count(split: SplitDecoder) -> SplitCost:
            prepare, (for_predict, for_upscale) = _macs(lambda: split.prepare(embeddings))
            predict, (_, sets) = _macs(lambda: split.predict(for_predict, coords, labels))
            upscale, _ = _macs(lambda: split.upscale(for_upscale, sets))
            return SplitCost(prepare, predict, upscale)

        plain, _ = _macs(lambda: decoder(embeddings, coords, labels))
        return DecoderCosts(plain, count(PlainSplit(decoder)), count(FactoredDecoder(decoder)))


def _macs(run: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
        result = run()
    return counter.get_total_flops() // 2, result
