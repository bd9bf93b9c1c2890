"""Which channels stay: the same share of every block, or the best over all blocks (SlimSAM, sec. 5 and table 5)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from sam_edge.compress.slices import ChannelGroup
from sam_edge.errors import CompressionError

ImportanceName = Literal["disturbed-taylor", "taylor", "hessian", "magnitude", "random"]
Ranking = Literal["local", "global"]
Normalization = Literal["sum", "mean", "max", "standardization", "gaussian"]

Score = Float[Tensor, "_ _"]


@dataclass(frozen=True)
class PruneOptions:
    """How much is removed, and by what measure."""

    ratio: float = 0.5
    """Share of channels to remove, in (0, 1)."""
    importance: ImportanceName = "disturbed-taylor"
    """`disturbed-taylor` (needs no labels), `taylor`, `hessian` (both need labels), `magnitude` or `random`."""
    ranking: Ranking = "global"
    """`local` removes the same share in every block, `global` ranks the channels of all blocks together."""
    normalization: Normalization = "gaussian"
    """What makes blocks comparable in a global ranking: sum, mean, max, standardization or gaussian."""
    round_to: int = 0
    """Kept widths are rounded down to a multiple of this; 0 takes the number of heads, as the paper's code does."""
    seed: int = 0
    """Seed of random importance, of the noise and of the pictures drawn."""


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda score: score / score.sum(),
    "mean": lambda score: score / score.mean(),
    "max": lambda score: score / score.max(),
    "standardization": lambda score: (score - score.max()) / (score.max() - score.min() + 1e-8),
    "gaussian": lambda score: (score - score.mean()) / (score.std() + 1e-8),
}
"""SlimSAM's five, of a layer's scores; they matter to a global ranking alone."""


def choose(
    groups: Sequence[ChannelGroup], scores: Sequence[Score], options: PruneOptions
) -> list[Int[Tensor, "sets kept"]]:
    """The channels of each group that stay, in order; every set of a group keeps equally many.

    Raises:
        CompressionError: a ratio that leaves nothing of a group.
    """
    kept: dict[int, Tensor] = {}
    for part in dict.fromkeys(group.part for group in groups):
        members = [index for index, group in enumerate(groups) if group.part == part]
        count = _globally if options.ranking == "global" and len(members) > 1 else _locally
        counts = count([groups[index] for index in members], [scores[index] for index in members], options)
        for index, keep in zip(members, counts, strict=True):
            # a stable order: equal scores keep the first channels, whatever the machine
            best = scores[index].argsort(dim=1, descending=True, stable=True)[:, :keep]
            kept[index] = best.sort(dim=1).values
    return [kept[index] for index in range(len(groups))]


def _locally(groups: Sequence[ChannelGroup], scores: Sequence[Score], options: PruneOptions) -> list[int]:
    """Channels per set that each group keeps: its share, rounded down."""
    counts = []
    for group in groups:
        step = _step(group, options)
        # the epsilon keeps 0.77 x 768 from losing a rounding unit to binary fractions
        keep = math.floor(group.per_set * (1 - options.ratio) + 1e-6) // step * step
        if keep < 1:
            raise _nothing_left(group, options)
        counts.append(keep)
    return counts


def _globally(groups: Sequence[ChannelGroup], scores: Sequence[Score], options: PruneOptions) -> list[int]:
    """Channels per set, by one ranking: each group's channels, best first, in bundles of a rounding unit.

    All widths together meet the share to a bundle; every group keeps one at least.
    """
    budget = math.floor(sum(group.width for group in groups) * (1 - options.ratio) + 1e-6)
    steps = [_step(group, options) for group in groups]
    counts = list(steps)
    bundles = []
    for index, (group, score) in enumerate(zip(groups, scores, strict=True)):
        if steps[index] > group.per_set:
            raise _nothing_left(group, options)
        budget -= steps[index] * group.heads
        ranked = NORMALIZATIONS[options.normalization](score).sort(dim=1, descending=True).values.mean(0)
        whole = len(ranked) // steps[index] * steps[index]
        values = ranked[:whole].view(-1, steps[index]).mean(1)[1:]
        bundles += [(-float(value), index) for value in values]
    if budget < 0:
        raise _nothing_left(groups[0], options)
    for _, index in sorted(bundles):
        cost = steps[index] * groups[index].heads
        # a bundle that does not fit is followed by none of its group: they cost the same
        if cost <= budget:
            budget -= cost
            counts[index] += steps[index]
    return counts


def _step(group: ChannelGroup, options: PruneOptions) -> int:
    """Channels per set in a rounding unit: heads stay equal, so a width moves by whole channels of all heads."""
    round_to = options.round_to or group.round_to
    return round_to // math.gcd(round_to, group.heads)


def _nothing_left(group: ChannelGroup, options: PruneOptions) -> CompressionError:
    what = "the embedding's" if group.block < 0 else f"{group.part} {group.block}'s"
    return CompressionError(
        f"ratio {options.ratio} leaves nothing of {what} {group.width} channels: lower --ratio or --round-to."
    )
