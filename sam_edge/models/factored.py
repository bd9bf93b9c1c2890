"""SAM's mask decoder for one image and many prompts, with the image tokens kept as factors and never formed.

The decoder rewrites all L image tokens (4096 x 256) for each prompt, layer after layer, though what a layer adds has
rank heads x tokens (8 x 7), and all that is read of the result are products with as few vectors. So the image tokens of
one prompt set after layer j are held as

    X_j + b_j,   X_j = s_j (X_(j-1) + U_j^T A_j),   X_0 = Z         Z: C x L, U_j: K x C, A_j: K x L, s_j: L scales

where Z and b belong to the image and the weights, and s, U, A to the prompt: A_j are a layer's attention weights from
image to tokens (K = heads x tokens), U_j its values through the output projection, s_j its LayerNorm's 1 / sigma. What
else a LayerNorm does, it does to channels: to Z and every U. Its variance comes from the same factors (`_scale`).
A projection W of X is W Z, computed once per image, and a few products with K rows (`projected`). All of it is exact,
up to the order of additions. A click that is drawn (`draws_points`) changes the few tokens around it, before the first
layer: one more factor, whose A has a single one in each row, whose s is one, and whose U is its values as they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from sam_edge.models.decoder import PromptableDecoder, attend_self
from sam_edge.models.drawn_prompts import drawn_clicks
from sam_edge.models.folded_attention import by_heads
from sam_edge.models.quantized import float_weight, in_float
from sam_edge.models.split import Parts

At = int | slice
"""One set, without its axis, or all."""
TINY = 1e-15
"""Least attention weight: less changes nothing either, but for denormal numbers, which make products twice as slow."""


@dataclass
class Factors:
    """The image tokens of N prompt sets: an entry per drawing and per layer so far, by the letters above."""

    u: list[Float[Tensor, "n k c"]] = field(default_factory=list)
    a: list[Float[Tensor, "n k l"]] = field(default_factory=list)
    """Rows are heads, then tokens."""
    s: list[Float[Tensor, "n 1 l"]] = field(default_factory=list)

    def named(self) -> Parts:
        """As named tensors."""
        return {f"{name}{layer}": value for name in "uas" for layer, value in enumerate(getattr(self, name))}

    @classmethod
    def of(cls, parts: Parts, count: int) -> "Factors":
        """What `named` made of `count` entries."""
        return cls(*([parts[f"{name}{entry}"] for entry in range(count)] for name in "uas"))


class FactoredDecoder(nn.Module):
    """`prepare` once per image, `predict` per prompt, `upscale` per mask; for float layers, without mask prompts.
    Of a decoder that draws clicks, every prompt set starts with one (`drawn_prompts.in_parts`)."""

    def __init__(self, decoder: PromptableDecoder, one_by_one: bool = True) -> None:
        """`one_by_one` walks through prompt sets singly where all image tokens are involved.

        One set's factors stay in a CPU's cache. A GPU and an exported graph take all sets at once.
        """
        super().__init__()
        self.decoder = decoder
        self.transformer = decoder.mask_decoder.transformer
        self.one_by_one = one_by_one
        self.clicks = drawn_clicks(decoder.prompt_encoder)

    def prepare(self, embeddings: Float[Tensor, "1 c gh gw"]) -> tuple[Parts, Parts]:
        """What `predict` and what `upscale` need of an image: projections of Z."""
        state = self.decoder.prepare(embeddings)
        dense = self.clicks.far() if self.clicks else self.decoder.prompt_encoder.no_mask_embed.weight.T
        z = state.tokens[0].T + dense
        positions, bias = state.positions.T, torch.zeros_like(z[:, :1])
        parts: Parts = {}
        outputs = [torch.eye(len(z), dtype=z.dtype, device=z.device)[None]] if self.clicks else []
        for index, layer in enumerate(self.transformer.layers):
            reader, writer, norm = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token, layer.norm4
            parts |= _readable(f"read{index}", reader, z, positions, merge=index == 0)
            query = float_weight(writer.q_proj)
            fixed = query @ (positions + bias) + writer.q_proj.bias[:, None]
            parts |= _products(f"write{index}", writer, query @ z, fixed, merge=index == 0)
            z = centred(z, 0)
            outputs = [centred(rows) for rows in (*outputs, output_rows(writer, bias[:, 0]))]
            parts[f"norm{index}_square"] = z.square().sum(0, keepdim=True)
            parts |= {f"norm{index}_outputs{source}": rows @ z for source, rows in enumerate(outputs)}
            z, bias = norm.weight[:, None] * z, norm.bias[:, None]
            outputs = [norm.weight * rows for rows in outputs]
        final = self.transformer.final_attn_token_to_image
        return parts | _readable("final", final, z, positions), {"upscaled": first_upscaling(self.decoder)[0] @ z}

    def predict(
        self, image: Parts, coords: Float[Tensor, "1 n p 2"], labels: Int[Tensor, "1 n p"]
    ) -> tuple[Float[Tensor, "n 4"], Parts]:
        """Predicted IoU of each set's four masks, and its mask tokens and factors."""
        tokens, present = self.decoder.embed_tokens(coords, labels)
        queries, factors = tokens, self._drawn(coords)
        values = [u.unsqueeze(1) for u in factors.u]
        bias = torch.zeros_like(tokens[0, 0])
        for index, layer in enumerate(self.transformer.layers):
            reader, writer, norm = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token, layer.norm4
            queries = attend_self(layer, queries, tokens, present)
            queries = layer.norm2(queries + self._read(f"read{index}", reader, image, queries + tokens, factors, bias))
            queries = layer.norm3(queries + layer.mlp(queries))
            a = self._write(f"write{index}", writer, image, queries + tokens, factors, present)
            # a head's attention weights sum to one: an equal share per head adds the biases
            values.append(F.pad(by_heads(writer, writer.v_proj(queries)), (0, 1), value=1 / writer.num_heads))
            factors.u.append((values[-1] @ output_rows(writer, bias)).flatten(1, 2))
            factors.u = [centred(u) for u in factors.u]
            factors.a.append(a)
            factors.s.append(self._scale(f"norm{index}", norm, image, values, factors))
            factors.u = [norm.weight * u for u in factors.u]
            bias = norm.bias
        final = self.transformer.final_attn_token_to_image
        queries = queries + self._read("final", final, image, queries + tokens, factors, bias)
        mask_tokens, iou = self.decoder.read_heads(self.transformer.norm_final_attn(queries))
        return iou, {"mask_tokens": mask_tokens, **factors.named()}

    def _drawn(self, coords: Float[Tensor, "1 n p 2"]) -> Factors:
        """The sets' clicks, where they are drawn."""
        if self.clicks is None:
            return Factors()
        u, a = self.clicks.click_tokens(coords[0, :, 0])
        return Factors([u], [a], [torch.ones_like(a[:, :1])])

    def upscale(self, image: Parts, sets: Parts) -> Float[Tensor, "n 4 h w"]:
        """Low-resolution logits of the four masks of each set."""
        factors = Factors.of(sets, len(self.transformer.layers) + (self.clicks is not None))
        weights = self.decoder.mask_weights(sets["mask_tokens"])
        weight, offset = first_upscaling(self.decoder)
        offset = (weight @ self.transformer.layers[-1].norm4.bias + offset)[..., None]
        # cell by cell of the first up-scaling, again for the cache's sake
        mixes = [[part @ u.mT for u in factors.u] for part in weight]

        def logits(at: At) -> Tensor:
            masks, cells = weights[at], []
            for cell, mix in enumerate(mixes):
                start = image["upscaled"][cell]
                features = projected(start.clone() if self.one_by_one else start, mix, factors, at).add_(offset[cell])
                cells.append(finish_upscaling(self.decoder, features, masks))
            return in_order(torch.stack(cells, -4), self.decoder.prompt_encoder.image_embedding_size)

        return self._over_sets(weights.shape[0], logits)

    def _over_sets(self, count: int, function: Callable[[At], Tensor]) -> Tensor:
        """`function` of all sets, or of one after the other without their axis."""
        return torch.stack([function(index) for index in range(count)]) if self.one_by_one else function(slice(None))

    def _read(
        self,
        name: str,
        attention: Attention,
        image: Parts,
        queries: Float[Tensor, "n t c"],
        factors: Factors,
        bias: Float[Tensor, "c"],
    ) -> Float[Tensor, "n t c"]:
        """Attention from tokens to the image; a bias of the keys shifts all scores alike, so softmax drops it."""
        query = by_heads(attention, attention.q_proj(queries))
        query = query / math.sqrt(query.shape[-1])
        for_keys, for_values = (float_weight(part).T for part in (attention.k_proj, attention.v_proj))
        mixes = [(query @ by_heads(attention, u @ for_keys).mT).flatten(1, 2) for u in factors.u]
        values = [by_heads(attention, u @ for_values) for u in factors.u]
        heads = query.shape[1:3]

        def read(at: At) -> Tensor:
            weights = attention_weights(scores(image, name, query[at], mixes, factors, at), -1)
            out = torch.zeros_like(query[at])
            # X_j = s_j (X_(j-1) + U_j^T A_j), from the outermost scale inwards
            for value, a, s in reversed(list(zip(values, factors.a, factors.s, strict=True))):
                weights.mul_(s[at].unsqueeze(-2))
                out = out + (weights.flatten(-3, -2) @ a[at].mT).unflatten(-2, heads) @ value[at]
            return out + weights @ image[f"{name}_values"].mT

        out = self._over_sets(query.shape[0], read).transpose(1, 2).flatten(2)
        return attention.out_proj(out + bias @ for_values + attention.v_proj.bias)

    def _write(
        self,
        name: str,
        attention: Attention,
        image: Parts,
        tokens: Float[Tensor, "n t c"],
        factors: Factors,
        present: Bool[Tensor, "n 1 1 t"],
    ) -> Float[Tensor, "n k l"]:
        """A layer's attention weights from the image to tokens."""
        key = by_heads(attention, attention.k_proj(tokens))
        key = key / math.sqrt(key.shape[-1])
        for_queries = float_weight(attention.q_proj).T
        mixes = [(key @ by_heads(attention, u @ for_queries).mT).flatten(1, 2) for u in factors.u]
        silence = torch.zeros_like(present, dtype=key.dtype).masked_fill(~present, -math.inf).mT

        def weigh(at: At) -> Tensor:
            found = scores(image, name, key[at], mixes, factors, at).add_(silence[at])
            return attention_weights(found, -2).flatten(-3, -2)

        return self._over_sets(key.shape[0], weigh)

    def _scale(
        self, name: str, norm: nn.LayerNorm, image: Parts, values: Sequence[Float[Tensor, "n h t dv"]], factors: Factors
    ) -> Float[Tensor, "n 1 l"]:
        """1 / sigma of Y = X_(j-1) + U_j^T A_j, all channels centred: the newest U, A have no scale yet.

        |Y|^2 grows layer by layer: |X + U^T A|^2 = |X|^2 + A * (2 U X + U U^T A), summed over K.
        """
        u = factors.u
        doubled = [2 * value for value in values]
        grams = [
            [2 * later @ earlier.mT for earlier in u[:index]] + [later @ later.mT] for index, later in enumerate(u)
        ]

        def scale(at: At) -> Tensor:
            total = image[f"{name}_square"]
            for index, (gram, value, a) in enumerate(zip(grams, doubled, factors.a, strict=True)):
                start = (value[at] @ image[f"{name}_outputs{index}"]).flatten(-3, -2)
                product = projected(start, gram[:index], factors, at)
                product = add_product(product, gram[index][at], a[at])
                total = total + product.mul_(a[at]).sum(-2, keepdim=True)
                if index < len(factors.s):
                    total = total * factors.s[index][at].square()
            return (total / u[0].shape[-1] + norm.eps).rsqrt()

        return self._over_sets(u[0].shape[0], scale)


def projected(
    start: Float[Tensor, "... m l"], mixes: Sequence[Float[Tensor, "_ m k"]], factors: Factors, at: At
) -> Float[Tensor, "*n m l"]:
    """W X of the sets `at`, from `start` = W Z, in place if it has their axes, and `mixes` = W U_j^T of all sets."""
    for mix, a, s in zip(mixes, factors.a, factors.s, strict=False):
        start = add_product(start, mix[at], a[at]).mul_(s[at])
    return start


def scores(
    image: Parts,
    name: str,
    q: Float[Tensor, "*n h t dh"],
    mixes: Sequence[Float[Tensor, "_ k2 k"]],
    factors: Factors,
    at: At,
) -> Float[Tensor, "*n h t l"]:
    """Products of tokens' queries (or keys) with the image's keys (or queries), positions included."""
    found = projected((q @ image[name]).flatten(-3, -2), mixes, factors, at).unflatten(-2, q.shape[-3:-1])
    fixed = image.get(f"{name}_fixed")
    return found if fixed is None else add_product(found, q, fixed)


def attention_weights(found: Float[Tensor, "*n h t l"], dim: int) -> Float[Tensor, "*n h t l"]:
    """Softmax along `dim`, without denormal numbers."""
    return found.softmax(dim).clamp_(min=TINY)


def add_product(start: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """start + x @ y, in place where `start` need not be broadcast."""
    if start.ndim < x.ndim:
        return start + x @ y
    if start.ndim == 2:
        return start.addmm_(x, y)
    return start.baddbmm_(x, y) if start.ndim == y.ndim == 3 else start.add_(x @ y)


def centred(x: Tensor, dim: int = -1) -> Tensor:
    """Without its mean along `dim`."""
    return x - x.mean(dim, keepdim=True)


def output_rows(attention: Attention, bias: Float[Tensor, "c"]) -> Float[Tensor, "h dv c"]:
    """The output projection by heads, each with one more row: its own bias and that of the tokens it is added to."""
    rows = float_weight(attention.out_proj).T.unflatten(0, (attention.num_heads, -1))
    last = (attention.out_proj.bias + bias).expand(attention.num_heads, 1, -1)
    return torch.cat([rows, last], 1)


def _products(
    name: str, attention: Attention, moving: Float[Tensor, "d l"], fixed: Float[Tensor, "d l"], merge: bool
) -> Parts:
    """A projection of Z, and what is added to it that no LayerNorm scales; one tensor while there is no LayerNorm."""
    moving, fixed = (part.unflatten(0, (attention.num_heads, -1)) for part in (moving, fixed))
    return {name: moving + fixed} if merge else {name: moving, f"{name}_fixed": fixed}


def _readable(
    name: str, attention: Attention, z: Float[Tensor, "c l"], positions: Float[Tensor, "c l"], merge: bool = False
) -> Parts:
    """An image's keys and values for tokens to read."""
    key, value = float_weight(attention.k_proj), float_weight(attention.v_proj)
    values = (value @ z).unflatten(0, (attention.num_heads, -1))
    return {**_products(name, attention, key @ z, key @ positions, merge), f"{name}_values": values}


def first_upscaling(decoder: PromptableDecoder) -> tuple[Float[Tensor, "4 c1 c"], Float[Tensor, "4 c1"]]:
    """The first transposed convolution as a matrix and a bias for each of its 2 x 2 cells.

    Output channels are centred, as the LayerNorm that follows would make them.
    """
    convolution = decoder.mask_decoder.output_upscaling[0]
    weight = float_weight(convolution).permute(2, 3, 1, 0).flatten(0, 1)
    return centred(weight, 1), centred(convolution.bias).expand(4, -1)


def finish_upscaling(
    decoder: PromptableDecoder, x: Float[Tensor, "*n c1 l"], masks: Float[Tensor, "*n 4 c2"]
) -> Float[Tensor, "*n 4 4 l"]:
    """What follows a cell of the first transposed convolution: norm (of `x`, in place), second one, masks.

    Returns the logits of its own 2 x 2 cells x 4 masks.
    """
    _, norm, activation, second, last_activation = decoder.mask_decoder.output_upscaling
    x = x.mul_((x.square().mean(-2, keepdim=True) + norm.eps).rsqrt())
    x = activation(x.mul_(norm.weight[:, None]).add_(norm.bias[:, None]))
    weight = float_weight(second).permute(2, 3, 1, 0).flatten(0, 2)
    features = last_activation((weight @ x).add_(second.bias.repeat(4)[:, None]))
    return masks.unsqueeze(-3) @ features.unflatten(-2, (4, -1))


def in_order(logits: Float[Tensor, "*n 4 4 m l"], grid: tuple[int, int]) -> Float[Tensor, "*n m h w"]:
    """Masks whose pixels come by 2 x 2 cells of 2 x 2 cells of the grid, as pictures."""
    cut = logits.unflatten(-1, grid).unflatten(-4, (2, 2)).unflatten(-6, (2, 2))
    first = cut.ndim - 7
    ordered = cut.permute(*range(first), *(first + axis for axis in (4, 5, 0, 2, 6, 1, 3)))
    return ordered.flatten(-3).flatten(-4, -2)


def can_factor(decoder: PromptableDecoder) -> bool:
    """True for a decoder whose layers are segment-anything's own, or quantized ones, and compute in float32."""
    modules = decoder.mask_decoder
    transformer, upscaling = modules.transformer, modules.output_upscaling
    attentions = [
        transformer.final_attn_token_to_image,
        *(layer.cross_attn_token_to_image for layer in transformer.layers),
        *(layer.cross_attn_image_to_token for layer in transformer.layers),
    ]
    return (
        all(in_float(part) for attention in attentions for part in attention.children())
        and all(in_float(layer) for layer in upscaling[:4:3])
        and type(upscaling[1]) is LayerNorm2d
        and modules.iou_token.weight.dtype == torch.float32
    )


def pays(decoder: PromptableDecoder, points: int) -> bool:
    """True when prompt sets of so many points (padding included) leave few enough rows to be worth factoring."""
    transformer = decoder.mask_decoder.transformer
    tokens = 1 + decoder.mask_decoder.num_mask_tokens + points
    return 2 * transformer.num_heads * tokens <= transformer.embedding_dim
