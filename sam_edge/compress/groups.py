"""Channel groups of a ViT encoder: which channels stand or fall together.

torch-pruning's dependency graph finds them. It traces a stand-in of the attention without windows, relative
positions and products: v goes straight to the projection, and q x k is handed out beside. That is all the coupling
there is (q with k, v with the projection's input), and tracing takes seconds instead of not ending.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
import torch_pruning as tp
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from sam_edge.models.vit import SplitAttention

Root = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class EncoderGroups:
    """The roots from which each group of channels is pruned."""

    graph: tp.DependencyGraph
    embedding: nn.Conv2d
    """Output channels: the residual stream of every block."""
    qk: tuple[nn.Linear, ...]
    """Per block, output channels of q, which k follows."""
    v: tuple[nn.Linear, ...]
    """Per block, output channels of v, which the projection follows."""
    mlp: tuple[nn.Linear, ...]
    """Per block, hidden channels of the MLP."""

    def roots(self, part: str) -> tuple[Root, ...]:
        """The roots of `embedding`, `qk`, `v` or `mlp`."""
        found = getattr(self, part)
        return found if isinstance(found, tuple) else (found,)

    def group(self, root: Root, channels: list[int]) -> tp.Group:
        """Everything that goes when `channels` of `root`'s output go."""
        prune = tp.prune_conv_out_channels if isinstance(root, nn.Conv2d) else tp.prune_linear_out_channels
        return self.graph.get_pruning_group(root, prune, idxs=channels)


def find_groups(encoder: ImageEncoderViT) -> EncoderGroups:
    """Trace an encoder whose attention is split."""
    device = next(encoder.parameters()).device
    example = torch.zeros(1, 3, encoder.img_size, encoder.img_size, device=device)
    blocks = list(encoder.blocks)
    with _stand_in(encoder) as products, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def forward(model: nn.Module, x: Tensor) -> list[Tensor]:
            products.clear()
            return [model(x), *products]

        graph = tp.DependencyGraph().build_dependency(
            encoder,
            example_inputs=example,
            forward_fn=forward,
            unwrapped_parameters=[(encoder.pos_embed, 3)],
            verbose=False,
        )
    return EncoderGroups(
        graph=graph,
        embedding=encoder.patch_embed.proj,
        qk=tuple(block.attn.q for block in blocks),
        v=tuple(block.attn.v for block in blocks),
        mlp=tuple(block.mlp.lin1 for block in blocks),
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
        yield products
    finally:
        for block, window in zip(blocks, windows, strict=True):
            block.window_size = window
            del block.attn.forward
