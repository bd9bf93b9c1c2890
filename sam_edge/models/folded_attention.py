"""The decoder's cross attention with its projections folded into the few tokens.

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
from torch import Tensor, nn


def folds(attention: Attention) -> bool:
    """Whether to fold: not where a projection or the products are to be watched, or in integers.

    Nor in a graph, or where operations are counted (on the meta device): both are of SAM as it was published.
    """
    plain = all(type(part) is nn.Linear and not part.weight.is_meta for part in attention.children())
    return plain and not torch.compiler.is_exporting()


def read_image(
    attention: Attention,
    queries: Float[Tensor, "b t c"],
    placed: Float[Tensor, "b l c"],
    image: Float[Tensor, "b l c"],
) -> Float[Tensor, "b t c"]:
    """Tokens attend to the image, `image` at the positions in `placed`."""
    heads = attention.num_heads
    q = by_heads(attention, attention.q_proj(queries))
    folded, offset = _folded(q * q.shape[-1] ** -0.5, attention.k_proj)
    weights = torch.softmax(torch.baddbmm(offset.flatten(1, 2), folded.flatten(1, 2), placed.mT), -1)
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
    heads = attention.num_heads
    k = by_heads(attention, attention.k_proj(tokens))
    # tokens first: softmax over them then goes along whole rows of heads x image tokens
    folded, offset = (x.transpose(1, 2).flatten(1, 2) for x in _folded(k * k.shape[-1] ** -0.5, attention.q_proj))
    absent = ~present.flatten(1).repeat_interleave(heads, 1)[..., None]
    scores = torch.baddbmm(offset.masked_fill(absent, -torch.inf), folded, placed.mT)
    weights = torch.softmax(scores.unflatten(1, (-1, heads)), 1).flatten(1, 2)
    v = by_heads(attention, attention.v_proj(values)) @ attention.out_proj.weight.T.unflatten(0, (heads, -1))
    return weights.mT @ v.transpose(1, 2).flatten(1, 2) + attention.out_proj.bias


def _folded(
    x: Float[Tensor, "b h t dh"], projection: nn.Linear
) -> tuple[Float[Tensor, "b h t c"], Float[Tensor, "b h t 1"]]:
    """The vectors, and the offset, whose product with an image token is that of `x` with its projection."""
    heads = x.shape[1]
    return x @ projection.weight.unflatten(0, (heads, -1)), x @ projection.bias.unflatten(0, (heads, -1, 1))


def by_heads(attention: Attention, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n dh"]:
    """A projection cut into heads."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
