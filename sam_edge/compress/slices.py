"""Structured pruning as data: the entries of an encoder's tensors that belong to each removable channel."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Part = Literal["embedding", "qk", "v", "mlp"]
ALL_PARTS: tuple[Part, ...] = ("embedding", "qk", "v", "mlp")
BOTTLENECK: tuple[Part, ...] = ("qk", "v", "mlp")


@dataclass(frozen=True)
class Slice:
    """Where a group's channels lie in one tensor of the encoder's state dict."""

    name: str
    dim: int
    index: Int[Tensor, "channels each"]
    """Positions along `dim` that belong to each channel."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be removed one by one, each from every tensor that it goes through.

    q and k of all heads form one set, whose channel c is channel c of every head; v has one set per head.
    """

    part: Part
    block: int
    """Number of the block over the whole encoder; -1 for the embedding that runs through all. Where every stage has an
    embedding of its own, theirs are numbered too."""
    heads: int
    """Width that one channel more per set adds: the heads of q, k and v, 1 elsewhere."""
    sets: int
    """The channels, in order, fall into this many equal sets that keep equally many."""
    round_to: int
    """What kept widths are multiples of unless the user says otherwise: the block's heads, as in the paper's code."""
    slices: tuple[Slice, ...]
    scaled: tuple[Slice, ...] = ()
    """Rows of k, which take the old attention scale over when the head width changes."""

    @property
    def per_set(self) -> int:
        """Channels of one set."""
        return len(self.slices[0].index) // self.sets

    @property
    def width(self) -> int:
        """The layer's width, all heads together."""
        return self.per_set * self.heads


@contextmanager
def traceable(encoder: nn.Module) -> Iterator[None]:
    """While the context lasts, gradients are recorded for every weight: a dependency graph is read off them."""
    frozen = [parameter for parameter in encoder.parameters() if not parameter.requires_grad]
    try:
        encoder.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def group_score(group: ChannelGroup, saliency: Mapping[str, Tensor]) -> Float[Tensor, "sets per_set"]:
    """A channel's importance: the sum over all weights that go with it (group reduction), in float64.

    `saliency` has one value per weight, by name; running statistics have none and count nothing.
    """
    total = torch.zeros(len(group.slices[0].index), dtype=torch.float64)
    for part in group.slices:
        if part.name in saliency:
            weights = saliency[part.name].movedim(part.dim, 0)
            summed = weights.reshape(len(weights), -1).sum(1, dtype=torch.float64).cpu()
            total += summed[part.index].sum(1)
    return total.view(group.sets, group.per_set)


def removed(
    state: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    kept: Sequence[Int[Tensor, "_ _"]],
) -> dict[str, Tensor]:
    """The state dict without the channels that are not `kept`; tensors of the rest are the same objects."""
    cut = dict(state)
    masks: dict[tuple[str, int], Tensor] = {}
    for group, keep in zip(groups, kept, strict=True):
        stays = torch.zeros(group.sets, group.per_set, dtype=torch.bool).scatter_(1, keep, True).flatten()
        for part in group.scaled:
            shape = [-1 if axis == part.dim else 1 for axis in range(cut[part.name].ndim)]
            fold = torch.ones(cut[part.name].shape[part.dim])
            # the new scale is 1 / sqrt(new width): k makes up for the difference
            fold[part.index.flatten()] = (keep.shape[1] / group.per_set) ** 0.5
            cut[part.name] = cut[part.name] * fold.to(cut[part.name]).view(shape)
        for part in group.slices:
            length = state[part.name].shape[part.dim]
            mask = masks.setdefault((part.name, part.dim), torch.ones(length, dtype=torch.bool))
            mask[part.index[~stays].flatten()] = False
    for (name, dim), mask in masks.items():
        cut[name] = cut[name].index_select(dim, mask.nonzero()[:, 0].to(cut[name].device))
    return cut
