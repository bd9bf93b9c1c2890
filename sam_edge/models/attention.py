"""Attention with decomposed relative positions that never holds the whole N x N matrix.

PyTorch's fused attention takes the positions as one N x N bias per head, keeps the weights of the same size where a
gradient is wanted, and is not fused at all where pruning left q and v of other widths: at 1024 tokens that is more time
in memory than in arithmetic. Here rows are taken in bands that stay in the cache, and the backward pass computes them
again (as FlashAttention does, Dao et al. 2022, sec. 3.1).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BAND = 256
"""Query rows at a time: 1 MB of float32 logits at 1024 tokens, which a core's second cache holds."""
SMALLEST_BANDED = 512
"""Tokens from which a CPU, and exported graphs, attend in bands. A training step is 2.2 x faster at 1024 tokens;
inference is level there, 1.4 x faster at SAM-B's 4096, 3 x where q and v differ in width. Windows of 64 tokens would be
slower."""

ROLES = ("q", "k", "v", "rel_pos_h", "rel_pos_w")
"""What attention with relative positions is given, as exported graphs have it marked: tokens of all heads side by side,
and the tables of positions."""
BIASED_ROLES = ("qkv", "bias")
"""What attention with a bias of each pair is given: tokens with q, k and v of each head side by side, and the bias."""
RESULT = "result"
"""What attention gives: tokens of all heads side by side."""

Bias = Tensor | tuple[Tensor, Tensor] | None
"""Added to attention's logits: a tensor (or a mask, False where not to look), or relative positions as rel_h, rel_w."""


class AttentionProducts(nn.Module):
    """Attention's two matrix products as a module of its own, so that they can be watched and turned into integers."""

    def forward(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        v: Float[Tensor, "b heads m dv"],
        bias: Bias = None,
    ) -> Float[Tensor, "b heads n dv"]:
        """softmax(q k^T / sqrt(d) + bias) v."""
        if not isinstance(bias, tuple):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if q.shape[2] >= SMALLEST_BANDED:
            if torch.compiler.is_exporting():
                return banded_attention(q, k, v, *bias)
            if q.device.type == "cpu":
                flat = (x.flatten(0, 1) for x in (q, k, v, *bias))
                return positional_attention(*flat).unflatten(0, q.shape[:2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=summed(*bias))


@torch.library.custom_op("sam_edge::banded_attention", mutates_args=())
def banded_attention(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """The same as one node of an exported program: tracing every band would take minutes."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=summed(rel_h, rel_w))


@banded_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.custom_op("sam_edge::_marked", mutates_args=())
def _marked(x: Tensor, role: str) -> Tensor:
    return x.clone()


@_marked.register_fake
def _(x: Tensor, role: str) -> Tensor:
    return torch.empty_like(x)


def marked(x: Tensor, role: str) -> Tensor:
    """x, whose value in a graph is to be found again by `role` while one is exported: see
    `sam_edge.export.kernel_notes`."""
    return _marked(x, role) if torch.compiler.is_exporting() else x


def summed(rel_h: Float[Tensor, "*b n h"], rel_w: Float[Tensor, "*b n w"]) -> Float[Tensor, "*b n h*w"]:
    """Relative positions as one bias per pair of tokens."""
    return (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2)


def positional_attention(
    q: Float[Tensor, "b n d"],
    k: Float[Tensor, "b n d"],
    v: Float[Tensor, "b n dv"],
    rel_h: Float[Tensor, "b n h"],
    rel_w: Float[Tensor, "b n w"],
) -> Float[Tensor, "b n dv"]:
    """softmax(q k^T / sqrt(d) + rel_h + rel_w) v over a grid of n = h x w tokens, differentiable in all five."""
    q = q * q.shape[-1] ** -0.5
    if q.dtype == torch.bfloat16:
        # a product over more columns is less work than passes over the logits where bfloat16 has units of its own:
        # a training step of nano's encoder takes 0.7 of the time
        q, k = torch.cat([q, rel_h, rel_w], -1), torch.cat([k, one_hot_places(rel_h, rel_w).expand(len(k), -1, -1)], -1)
        rel_h, rel_w = rel_h[..., :0], rel_w[..., :0]
    out: Tensor = _Banded.apply(*(x.contiguous() for x in (q, k, v, rel_h, rel_w)))
    return out


def one_hot_places(rel_h: Float[Tensor, "*b n h"], rel_w: Float[Tensor, "*b n w"]) -> Float[Tensor, "h*w h+w"]:
    """Row and column of each key, one-hot: [rel_h, rel_w] times this is the sum of the positions."""
    height, width = rel_h.shape[-1], rel_w.shape[-1]
    row, column = torch.eye(height).repeat_interleave(width, 0), torch.eye(width).repeat(height, 1)
    return torch.cat([row, column], 1).to(rel_h)


def _band_weights(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    logits = torch.mm(q, k.T)
    if rel_h.shape[-1]:
        grid = logits.view(-1, rel_h.shape[-1], rel_w.shape[-1])
        grid.add_(rel_h[:, :, None]).add_(rel_w[:, None, :])
    return torch.softmax(logits, -1)


class _Banded(torch.autograd.Function):
    """softmax(q k^T + rel_h + rel_w) v, or without positions where they have no columns."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for i in range(len(q)):
            for row in range(0, q.shape[1], BAND):
                band = slice(row, row + BAND)
                torch.mm(_band_weights(q[i, band], k[i], rel_h[i, band], rel_w[i, band]), v[i], out=out[i, band])
        ctx.save_for_backward(q, k, v, rel_h, rel_w)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (grad,) = grads
        q, k, v, rel_h, rel_w = ctx.saved_tensors
        grad_q, grad_h, grad_w = (torch.empty_like(x) for x in (q, rel_h, rel_w))
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for i in range(len(q)):
            for row in range(0, q.shape[1], BAND):
                band = slice(row, row + BAND)
                weights = _band_weights(q[i, band], k[i], rel_h[i, band], rel_w[i, band])
                grad_v[i].addmm_(weights.T, grad[i, band])
                wanted = torch.mm(grad[i, band], v[i].T)
                logits = torch._softmax_backward_data(wanted, weights, -1, weights.dtype)
                if rel_h.shape[-1]:
                    grid = logits.view(-1, rel_h.shape[-1], rel_w.shape[-1])
                    torch.sum(grid, 2, out=grad_h[i, band])
                    torch.sum(grid, 1, out=grad_w[i, band])
                torch.mm(logits, k[i], out=grad_q[i, band])
                grad_k[i].addmm_(logits.T, q[i, band])
        return grad_q, grad_k, grad_v, grad_h, grad_w
