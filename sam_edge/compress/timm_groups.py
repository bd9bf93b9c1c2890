"""Channel groups of a backbone of timm's: the widths inside its blocks, and those between them.

torch-pruning's dependency graph of backbone and pyramid finds what is coupled: through depthwise convolutions, batch
norms, gates, additions and concatenations. A width that one block keeps to itself (the hidden channels of an inverted
residual, or of a residual block) is its bottleneck, as an MLP's hidden width is in a transformer block; one that goes
from block to block, or into the pyramid, is a stage's embedding. A refinement of the pyramid has a bottleneck too.

What goes through anything but plain and depthwise convolutions, linear layers and batch norms stays whole, and so does
what is too narrow to choose from. The pyramid's own width stays as well: it is the neck's input, as a TinyViT's last.
"""

import warnings
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.compress.slices import ChannelGroup, Part, Slice, traceable
from sam_edge.compress.tiny_vit_groups import CONVOLUTION_ROUND_TO
from sam_edge.errors import CompressionError
from sam_edge.models.timm_encoder import TimmEncoder, is_narrowable

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""What holds blocks and is none; nor are the backbone and the encoder themselves."""
NARROWEST = 2 * CONVOLUTION_ROUND_TO
"""Fewest channels of a group: of less, rounding leaves no choice."""
STATISTICS = ("running_mean", "running_var")
_FEATURES: WeakKeyDictionary[TimmEncoder, dict[str, list[str]]] = WeakKeyDictionary()
"""What `feature_layers` found: training asks in every step, and to trace takes as long as a step on a GPU."""


def timm_groups(encoder: TimmEncoder) -> list[ChannelGroup]:
    """Every group of backbone and pyramid, `mlp` inside blocks and `embedding` between them, each numbered in order.

    Raises:
        CompressionError: a network that torch-pruning cannot trace, or without groups of both kinds.
    """
    found = _coupled(encoder)
    wide = {part: [each for each in all_of if len(each[0].index) >= NARROWEST] for part, all_of in found.items()}
    if not all(wide.values()):
        raise CompressionError("this backbone has no channels that can be removed: choose a smaller student instead.")
    return [
        ChannelGroup(part, number, 1, 1, CONVOLUTION_ROUND_TO, slices)
        for part in found
        for number, slices in enumerate(wide[part])
    ]


def feature_layers(encoder: TimmEncoder, kind: Literal["bottleneck", "embedding"]) -> list[str]:
    """Names of the layers that give the bottlenecks, or of the blocks around them: the same however narrow they are."""
    if encoder not in _FEATURES:
        inside = _coupled(encoder)["mlp"]
        blocks = dict.fromkeys(owner(slices) for slices in inside)
        _FEATURES[encoder] = {
            "bottleneck": [layer_of(slices[0]) for slices in inside],
            # a gate inside a block gives no embedding
            "embedding": [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)],
        }
    return _FEATURES[encoder][kind]


def owner(slices: Iterable[Slice]) -> str:
    """Name of the smallest module that all layers of a group are in."""
    paths = [layer_of(part).split(".") for part in slices]
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False)))


def layer_of(part: Slice) -> str:
    """Name of the layer that a slice's tensor belongs to."""
    return part.name.rpartition(".")[0]


class _Maps(nn.Module):
    """The encoder up to the pyramid's grid: behind it no width may change."""

    def __init__(self, encoder: TimmEncoder) -> None:
        super().__init__()
        self.backbone, self.laterals = encoder.backbone, encoder.pyramid.laterals

    def forward(self, pixels: Float[Tensor, "1 3 s s"]) -> list[Float[Tensor, "1 c _ _"]]:
        return [lateral(each) for lateral, each in zip(self.laterals, self.backbone(pixels), strict=True)]


def _coupled(encoder: TimmEncoder) -> dict[Part, list[tuple[Slice, ...]]]:
    """What stands or falls together, by part."""
    parts: dict[Part, list[tuple[Slice, ...]]] = {"embedding": [], "mlp": []}
    for slices in [*_of_backbone(encoder), *_of_refinements(encoder)]:
        within = encoder.get_submodule(owner(slices))
        outside = isinstance(within, CONTAINERS) or within in (encoder, encoder.backbone)
        parts["embedding" if outside else "mlp"].append(slices)
    return parts


def _of_backbone(encoder: TimmEncoder) -> Iterator[tuple[Slice, ...]]:
    names: dict[Any, str] = {module: name for name, module in encoder.named_modules()}
    graph = _trace(encoder)
    seen: set[frozenset[tuple[str, int]]] = set()
    for root in encoder.backbone.modules():
        # a depthwise convolution goes with what made its input
        if not isinstance(root, nn.Conv2d | nn.Linear) or getattr(root, "groups", 1) > 1:
            continue
        prune = tp.prune_conv_out_channels if isinstance(root, nn.Conv2d) else tp.prune_linear_out_channels
        group = graph.get_pruning_group(root, prune, idxs=list(range(len(root.weight))))
        # torch-pruning's own nodes, for additions and the like, hold no tensors
        layers = [i.dep.layer for i in group if isinstance(i.dep.layer, nn.Parameter) or i.dep.layer in names]
        if not all(layer in names and is_narrowable(layer) for layer in layers):
            continue
        slices = tuple(_slices(group, names))
        touched = frozenset((part.name, part.dim) for part in slices)
        if touched not in seen:
            seen.add(touched)
            yield slices


def _slices(group: tp.Group, names: dict[Any, str]) -> Iterator[Slice]:
    for item in group:
        layer = item.dep.layer
        if layer not in names:
            continue
        index = torch.empty(len(item.root_idxs), 1, dtype=torch.long)
        index[torch.tensor(item.root_idxs), 0] = torch.tensor(item.idxs)
        plain = not isinstance(layer, nn.BatchNorm2d) and getattr(layer, "groups", 1) == 1
        if plain and item.dep.pruning_fn.__name__ == "prune_in_channels":
            yield Slice(f"{names[layer]}.weight", 1, index)
            continue
        for kind in ("weight", "bias", *STATISTICS):
            if getattr(layer, kind, None) is not None:
                yield Slice(f"{names[layer]}.{kind}", 0, index)


def _of_refinements(encoder: TimmEncoder) -> Iterator[tuple[Slice, ...]]:
    for number in range(len(encoder.pyramid.blocks)):
        stem = f"pyramid.blocks.{number}."
        channels = torch.arange(len(encoder.get_parameter(f"{stem}conv1.weight")))[:, None]
        outputs = (Slice(f"{stem}conv1.{kind}", 0, channels) for kind in ("weight", "bias"))
        yield (*outputs, Slice(f"{stem}conv2.weight", 1, channels))


def _trace(encoder: TimmEncoder) -> tp.DependencyGraph:
    maps = _Maps(encoder)
    smallest = 2 * encoder.strides[-1]
    example = next(encoder.parameters()).new_zeros(1, 3, smallest, smallest)
    with traceable(encoder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return tp.DependencyGraph().build_dependency(maps, example_inputs=example, verbose=False)
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
            raise CompressionError(
                f"torch-pruning cannot follow this backbone ({type(error).__name__}): choose a smaller student instead."
            ) from error
