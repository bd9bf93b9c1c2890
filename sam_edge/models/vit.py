"""The ViT image encoder: segment-anything's module, and its attention with q, k and v apart.

Pruning, quantization and export need q, k and v as three layers of free widths; segment-anything fuses them.
`SplitAttention` is the same function (a test holds it to that), computed by PyTorch's fused attention with the
relative positions as a bias, which on a CPU is several times faster than the reference's separate passes.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from segment_anything.modeling.common import MLPBlock
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT, get_rel_pos
from torch import Tensor, nn

from sam_edge.models.attention import RESULT, ROLES, AttentionProducts, marked
from sam_edge.models.neck import build_neck
from sam_edge.segment.config import BlockConfig, ModelConfig


class SplitAttention(nn.Module):
    """Multi-head attention with separate q, k, v and decomposed relative positions (SAM, MViTv2).

    Relative positions multiply the unscaled q, as in segment-anything.
    """

    def __init__(self, embed: int, qk: int, v: int, heads: int, size: int, *, rel_pos: bool = True) -> None:
        """`size` is the side of the token grid attended over; the tables have 2 x size - 1 rows."""
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(embed, qk)
        self.k = nn.Linear(embed, qk)
        self.v = nn.Linear(embed, v)
        self.proj = nn.Linear(v, embed)
        self.products = AttentionProducts()
        self.use_rel_pos = rel_pos
        if rel_pos:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, qk // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, qk // heads))

    @classmethod
    def from_fused(cls, fused: Attention) -> "SplitAttention":
        """The same function as segment-anything's fused attention, weights copied."""
        embed = fused.proj.in_features
        size = (fused.rel_pos_h.shape[0] + 1) // 2 if fused.use_rel_pos else 1
        split = cls(embed, embed, embed, fused.num_heads, size, rel_pos=fused.use_rel_pos)
        state = fused.state_dict()
        split.load_state_dict(split_fused_keys(state))
        return split.to(fused.proj.weight.device)

    def forward(self, x: Float[Tensor, "b h w embed"]) -> Float[Tensor, "b h w embed"]:
        """Attend within each of the b grids."""
        grid = x.shape[1:3]
        tokens = x.flatten(1, 2)
        given = [layer(tokens) for layer in (self.q, self.k, self.v)]
        if self.use_rel_pos:
            given = [marked(x, role) for x, role in zip((*given, self.rel_pos_h, self.rel_pos_w), ROLES, strict=True)]
        q, k, v = (self._by_head(x) for x in given[:3])
        bias = relative_positions(q.unflatten(2, grid), *given[3:]) if self.use_rel_pos else None
        out = self.products(q, k, v, bias).transpose(1, 2).flatten(2)
        return self.proj((marked(out, RESULT) if self.use_rel_pos else out).unflatten(1, grid))

    def _by_head(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b heads n d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def relative_positions(
    q: Float[Tensor, "b heads h w d"], rel_pos_h: Float[Tensor, "rows d"], rel_pos_w: Float[Tensor, "columns d"]
) -> tuple[Float[Tensor, "b heads h*w h"], Float[Tensor, "b heads h*w w"]]:
    """Each query's products with the tables' rows of its distance to every row, and every column, of keys."""
    height, width = q.shape[2:4]
    # not einsum, which ONNX Runtime computes through several copies
    rel_h = q @ get_rel_pos(height, height, rel_pos_h).mT
    rel_w = (q.transpose(2, 3) @ get_rel_pos(width, width, rel_pos_w).mT).transpose(2, 3)
    return rel_h.flatten(2, 3), rel_w.flatten(2, 3)


def build_vit(config: ModelConfig) -> ImageEncoderViT:
    """segment-anything's encoder for `vit`; for `slim_vit` the same with split attention of the given widths."""
    first = config.blocks[0]
    windows = [block.window for block in config.blocks if block.window]
    encoder = ImageEncoderViT(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=first.embed,
        depth=len(config.blocks),
        # the fused blocks of a slim ViT are replaced below: any head count that divides will do
        num_heads=first.heads if config.arch == "vit" else 1,
        mlp_ratio=first.mlp / first.embed,
        out_chans=config.decoder.dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=config.arch == "vit" and first.rel_pos,
        window_size=windows[0] if windows else 0,
        global_attn_indexes=tuple(i for i, block in enumerate(config.blocks) if not block.window),
    )
    for module, block in zip(encoder.blocks, config.blocks, strict=True):
        module.window_size = block.window
        if config.arch == "slim_vit":
            module.attn = _split_attention(block, config.grid)
        if module.mlp.lin1.out_features != block.mlp:
            module.mlp = MLPBlock(embedding_dim=block.embed, mlp_dim=block.mlp, act=nn.GELU)
    if config.neck:
        encoder.neck = build_neck(first.embed, config)
    return encoder


def _split_attention(block: BlockConfig, grid: int) -> SplitAttention:
    size = block.window or grid
    return SplitAttention(block.embed, block.qk, block.v, block.heads, size, rel_pos=block.rel_pos)


def split_fused_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with every fused `qkv` replaced by `q`, `k` and `v`."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(("qkv.weight", "qkv.bias")):
            stem, kind = name.rsplit("qkv.", 1)
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                split[f"{stem}{part}.{kind}"] = chunk.clone()
        else:
            split[name] = value
    return split


def swap_modules(
    model: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[nn.Module], nn.Module]
) -> dict[str, nn.Module]:
    """Replace every submodule that `wanted` accepts by `make(module)`; returns what was put where."""
    found = [(name, module) for name, module in model.named_modules() if name and wanted(module)]
    replaced = {name: make(module) for name, module in found}
    for name, module in replaced.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module)
    return replaced


def split_attention(encoder: ImageEncoderViT) -> dict[str, nn.Module]:
    """Replace segment-anything's fused attention by the split form, in place and without changing the function."""
    return swap_modules(encoder, lambda module: isinstance(module, Attention), SplitAttention.from_fused)
