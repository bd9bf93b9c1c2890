"""Inner features that alternate slimming aligns (SlimSAM, section 3.2): bottleneck H and embedding E of every block."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.image_encoder import Block
from timm.models.tiny_vit import MBConv, TinyVitBlock
from torch import Tensor, nn

from sam_edge.compress.timm_groups import feature_layers
from sam_edge.models.timm_encoder import TimmEncoder

Kind = Literal["bottleneck", "embedding"]

BOTTLENECK_LAYERS = ("attn.q", "attn.k", "attn.v", "mlp.lin1")
"""Of a ViT block: the QKV features, and the MLP's hidden features."""


@contextmanager
def recorded(encoder: nn.Module, kind: Kind) -> Iterator[list[Tensor]]:
    """A list that fills with the features of every block while the encoder runs, in order."""
    features: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
        features.append(output)

    hooks = [module.register_forward_hook(record) for module in _sources(encoder, kind)]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def _sources(encoder: nn.Module, kind: Kind) -> list[nn.Module]:
    if isinstance(encoder, TimmEncoder):
        return [encoder.get_submodule(name) for name in feature_layers(encoder, kind)]
    blocks = [module for module in encoder.modules() if isinstance(module, Block | MBConv | TinyVitBlock)]
    if kind == "embedding":
        return blocks
    return [block.get_submodule(name) for block in blocks for name in BOTTLENECK_LAYERS]


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Squared error over all features, each layer weighing the same."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(mine.float(), wanted.float()) for mine, wanted in pairs]).mean()
