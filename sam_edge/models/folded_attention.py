"""The decoder's cross attention with its projections folded into the few tokens, for training.

One side of SAM's cross attention is all L image tokens of every prompt set, the other T = 7 or so. Projecting the image
costs L x C x D, its activations have to be kept for the backward pass, and attention kernels are slow where one side
and the heads' width are that small. With the heads' parts of a projection multiplied into the tokens instead,

    (x W_k,h) . q_h = x . (W_k,h q_h),        sum_l a_l (x_l W_v,h) = (sum_l a_l x_l) W_v,h,

all that is left are products of the image tokens with heads x T vectors. It is the same function, but for the order of
additions.
"""

import torch
from jaxtyping import Bool, Float
from segment_anything.modeling.transformer import Attention
from torch import Tensor


def folds(attention: Attention) -> bool:
    """Whether to fold: where gradients are taken, of projections and products that nobody watches or has replaced."""
    return torch.is_grad_enabled() and not hasattr(attention, "products")


def read_image(
    attention: Attention,
    queries: Float[Tensor, "b t c"],
    placed: Float[Tensor, "b l c"],
    image: Float[Tensor, "b l c"],
) -> Float[Tensor, "b t c"]:
    """Tokens attend to the image, `image` at the positions in `placed`."""
    heads = attention.num_heads
    q = _by_head(attention.q_proj(queries), heads)
    # the bias of k adds the same to a token's every score, which softmax does not see
    folded = q * q.shape[-1] ** -0.5 @ attention.k_proj.weight.unflatten(0, (heads, -1))
    weights = torch.softmax(folded.flatten(1, 2) @ placed.mT, -1)
    seen = (weights @ image).unflatten(1, (heads, -1))
    values = seen @ attention.v_proj.weight.unflatten(0, (heads, -1)).mT
    return attention.out_proj(values.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def write_image(
    attention: Attention,
    placed: Float[Tensor, "b l c"],
    tokens: Float[Tensor, "b t c"],
    values: Float[Tensor, "b t c"],
    present: Bool[Tensor, "b 1 1 t"],
) -> Float[Tensor, "b l c"]:
    """The image attends to tokens that are present: their keys from `tokens`."""
    heads, query = attention.num_heads, attention.q_proj
    k = _by_head(attention.k_proj(tokens), heads)
    k = k * k.shape[-1] ** -0.5
    folded = k @ query.weight.unflatten(0, (heads, -1))
    offset = (k @ query.bias.unflatten(0, (heads, -1, 1))).masked_fill(~present.mT, -torch.inf)
    # tokens first: softmax over them then goes along whole rows of heads x image tokens
    scores = folded.transpose(1, 2).flatten(1, 2) @ placed.mT + offset.transpose(1, 2).flatten(1, 2)
    weights = torch.softmax(scores.unflatten(1, (-1, heads)), 1).flatten(1, 2)
    v = _by_head(attention.v_proj(values), heads) @ attention.out_proj.weight.T.unflatten(0, (heads, -1))
    return weights.mT @ v.transpose(1, 2).flatten(1, 2) + attention.out_proj.bias


def _by_head(x: Float[Tensor, "b t d"], heads: int) -> Float[Tensor, "b h t dh"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
