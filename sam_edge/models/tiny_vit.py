"""The TinyViT image encoder of MobileSAM and TinySAM (Wu et al. 2022): timm's blocks behind SAM's neck.

It differs from timm's classifier in the stride of each merging (MobileSAM's last one keeps the resolution, so
that 1024 pixels become 64 x 64 tokens) and in SAM's neck, which takes the place of the classification head.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from timm.models.tiny_vit import Attention, ConvLayer, MBConv, NormMlp, PatchEmbed, PatchMerging, TinyVitStage
from torch import Tensor, nn

from sam_edge.errors import ModelError
from sam_edge.models.attention import BIASED_ROLES, RESULT, AttentionProducts, marked
from sam_edge.models.neck import build_neck
from sam_edge.models.vit import swap_modules
from sam_edge.segment.config import ModelConfig, StageConfig

STEM_STRIDE = 4
"""Down-sampling of the convolutional stem, before the first stage."""


class TinyVitEncoder(nn.Module):
    """Stem, stages and neck; takes any batch size, and any image side that its strides divide."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first = config.stages[0]
        self.img_size = config.image_size
        self.patch_embed = PatchEmbed(3, first.embed, nn.GELU)
        self.stages = nn.Sequential(_convolutional_stage(first))
        for before, stage in zip(config.stages, config.stages[1:], strict=False):
            self.stages.append(_attention_stage(before.embed, stage))
        swap_modules(self.stages, lambda module: type(module) is Attention, _FreshBiasAttention.of)
        self.neck = build_neck(config.stages[-1].embed, config)

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embedding of normalised, padded pixels."""
        return self.neck(self.stages(self.patch_embed(pixels)))


class _FreshBiasAttention(Attention):
    """timm's window attention, looking its position biases up on every call.

    In evaluation mode timm keeps the looked-up table between calls. It is then stale after weights are loaded
    or stepped, a second backward pass finds its graph freed, and an exporter would keep it as state.
    """

    attention_bias_idxs: Tensor

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.products = AttentionProducts()

    @classmethod
    def of(cls, module: nn.Module) -> "_FreshBiasAttention":
        """A new layer of the same shape as timm's; weights are not copied."""
        assert isinstance(module, Attention)
        dim = module.norm.normalized_shape[0]
        return cls(dim, module.key_dim, module.num_heads, module.attn_ratio, module.resolution)

    def get_attention_biases(self, device: torch.device) -> Float[Tensor, "heads n n"]:
        """The bias of every pair of positions in a window."""
        return self.attention_biases[:, self.attention_bias_idxs]

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """timm's own, but for its products, which are a module."""
        given = self.qkv(self.norm(x)), self.get_attention_biases(x.device)
        tokens, bias = (marked(value, role) for value, role in zip(given, BIASED_ROLES, strict=True))
        heads = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q, k, v = heads.split([self.key_dim, self.key_dim, self.val_dim], -1)
        out = self.products(q, k, v, bias)
        return self.proj(marked(out.transpose(1, 2).flatten(2), RESULT))

    def train(self, mode: bool = True) -> "_FreshBiasAttention":
        """As everywhere in torch, returns the module itself; timm's returns None."""
        super().train(mode)
        return self


def _attention_stage(before: int, stage: StageConfig) -> TinyVitStage:
    module = TinyVitStage(before, stage.embed, stage.depth, stage.heads, stage.window, downsample=PatchMerging)
    merging = module.downsample
    assert isinstance(merging, PatchMerging)
    # timm's merging always halves; the stride is no part of the weights, so it can be set afterwards
    merging.conv2.conv.stride = (stage.stride, stage.stride)
    for block, qk, v, mlp in zip(module.blocks, stage.qk_widths, stage.v_widths, stage.mlp_widths, strict=True):
        assert isinstance(block.attn, Attention)
        key, resolution = qk // stage.heads, block.attn.resolution
        if (qk, v) != (stage.embed, stage.embed):
            # timm takes v's width as a ratio and rounds down: half a channel more keeps fractions off the edge
            block.attn = Attention(stage.embed, key, stage.heads, (v // stage.heads + 0.5) / key, resolution)  # type: ignore[arg-type]
        if mlp != 4 * stage.embed:
            block.mlp = NormMlp(stage.embed, mlp)
    return module


def _convolutional_stage(stage: StageConfig) -> ConvLayer:
    module = ConvLayer(stage.embed, stage.depth, nn.GELU)
    for index, mlp in enumerate(stage.mlp_widths):
        if mlp != 4 * stage.embed:
            module.blocks[index] = MBConv(stage.embed, stage.embed, (mlp + 0.5) / stage.embed, nn.GELU, 0.0)
    return module


def build_tiny_vit(config: ModelConfig) -> TinyVitEncoder:
    """The encoder that `config.stages` describes, randomly initialised.

    Raises:
        ModelError: a first stage that attends or strides, or strides that do not multiply to the patch size.
    """
    first, *later = config.stages
    if first.heads or first.stride != 1 or not all(stage.heads and stage.window for stage in later):
        raise ModelError(
            "tiny_vit starts with a convolutional stage (heads 0, stride 1), and every later one has heads "
            f"and a window, got heads {[s.heads for s in config.stages]}, first stride {first.stride}."
        )
    stride = STEM_STRIDE * math.prod(stage.stride for stage in config.stages)
    if stride != config.patch_size:
        raise ModelError(
            f"tiny_vit's strides multiply to {stride}: patch_size must be the same, got {config.patch_size}."
        )
    return TinyVitEncoder(config)
