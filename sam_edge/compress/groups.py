"""Channel groups of an image encoder: which channels stand or fall together.

For a ViT, torch-pruning's dependency graph finds them. It traces a stand-in of the attention without windows, relative
positions and products: v goes straight to the projection, and q x k is handed out beside. That is all the coupling
there is (q with k, v with the projection's input), and tracing takes seconds instead of not ending. What heads share
is tied afterwards: a column of the relative-position tables multiplies the same channel of every head.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType

import torch
import torch_pruning as tp
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from sam_edge.compress.slices import ChannelGroup, Slice, traceable
from sam_edge.compress.timm_groups import timm_groups
from sam_edge.compress.tiny_vit_groups import tiny_vit_groups
from sam_edge.models.sam import EdgeSam
from sam_edge.models.vit import SplitAttention


def find_groups(model: EdgeSam) -> list[ChannelGroup]:
    """Every group of the image encoder; a ViT's attention must be split. TinyViT's embeddings stay whole."""
    if model.config.arch == "tiny_vit":
        return tiny_vit_groups(model.config)
    if model.config.arch == "timm":
        return timm_groups(model.image_encoder)
    encoder = model.image_encoder
    graph = _trace(encoder)
    names = {module: name for name, module in encoder.named_modules()} | {encoder.pos_embed: "pos_embed"}

    def slices(root: nn.Conv2d | nn.Linear) -> tuple[Slice, ...]:
        prune = tp.prune_conv_out_channels if isinstance(root, nn.Conv2d) else tp.prune_linear_out_channels
        channels = list(range(root.weight.shape[0]))
        return tuple(_slices(graph.get_pruning_group(root, prune, idxs=channels), names))

    groups = [ChannelGroup("embedding", -1, 1, 1, model.config.blocks[0].heads, slices(encoder.patch_embed.proj))]
    for number, block in enumerate(encoder.blocks):
        heads = block.attn.heads
        qk = tuple(_tied(part, heads) for part in slices(block.attn.q))
        k = tuple(part for part in qk if part.name.startswith(f"blocks.{number}.attn.k."))
        groups += [
            ChannelGroup("qk", number, heads, 1, heads, qk + _tables(block.attn, number), k),
            ChannelGroup("v", number, heads, heads, heads, slices(block.attn.v)),
            ChannelGroup("mlp", number, 1, 1, heads, slices(block.mlp.lin1)),
        ]
    return groups


def _slices(group: tp.Group, names: dict[object, str]) -> Iterator[Slice]:
    """torch-pruning's group as entries of tensors; its own nodes for additions and views hold none."""
    for item in group:
        layer, roots = item.dep.layer, torch.tensor(item.root_idxs)
        if layer not in names:
            continue
        index = torch.empty(len(roots), 1, dtype=torch.long)
        index[roots, 0] = torch.tensor(item.idxs)
        if isinstance(layer, nn.Parameter):
            yield Slice(names[layer], layer.ndim - 1, index)
        elif item.dep.pruning_fn.__name__ == "prune_in_channels":
            yield Slice(f"{names[layer]}.weight", 1, index)
        else:
            yield Slice(f"{names[layer]}.weight", 0, index)
            if layer.bias is not None:
                yield Slice(f"{names[layer]}.bias", 0, index)


def _tied(part: Slice, heads: int) -> Slice:
    """The same channel of every head as one."""
    return replace(part, index=part.index.view(heads, -1).T.contiguous())


def _tables(attention: SplitAttention, block: int) -> tuple[Slice, ...]:
    if not attention.use_rel_pos:
        return ()
    columns = torch.arange(attention.rel_pos_h.shape[1])[:, None]
    return tuple(Slice(f"blocks.{block}.attn.{name}", 1, columns) for name in ("rel_pos_h", "rel_pos_w"))


def _trace(encoder: ImageEncoderViT) -> tp.DependencyGraph:
    example = next(encoder.parameters()).new_zeros(1, 3, encoder.img_size, encoder.img_size)
    with _stand_in(encoder) as products, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def forward(model: nn.Module, x: Tensor) -> list[Tensor]:
            products.clear()
            return [model(x), *products]

        return tp.DependencyGraph().build_dependency(
            encoder,
            example_inputs=example,
            forward_fn=forward,
            unwrapped_parameters=[(encoder.pos_embed, 3)],
            verbose=False,
        )


@contextmanager
def _stand_in(encoder: ImageEncoderViT) -> Iterator[list[Tensor]]:
    """Replace attention by what couples its channels; yields the list that q x k goes into."""
    products: list[Tensor] = []

    def forward(self: SplitAttention, x: Tensor) -> Tensor:
        products.append(self.q(x) * self.k(x))
        return self.proj(self.v(x))

    blocks = list(encoder.blocks)
    windows = [block.window_size for block in blocks]
    for block in blocks:
        block.window_size = 0
        block.attn.forward = MethodType(forward, block.attn)
    try:
        with traceable(encoder):
            yield products
    finally:
        for block, window in zip(blocks, windows, strict=True):
            block.window_size = window
            del block.attn.forward
