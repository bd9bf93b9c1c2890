"""SAM's prompt encoder and mask decoder, over B images x N prompt sets x P points.

segment-anything's own modules hold the weights; only the walk through them is written again, because theirs
takes one image at a time, cannot leave a point out of attention, and branches on data, which no exporter follows.
A test holds the walk to segment-anything's.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock, TwoWayTransformer
from torch import Tensor, nn

from sam_edge.models.drawn_prompts import DrawingPromptEncoder
from sam_edge.models.folded_attention import by_heads, folds, read_image, write_image
from sam_edge.segment.prompts import ABSENT, NOT_A_POINT, Prompts


@dataclass(frozen=True)
class ImageState:
    """What depends on the image alone, computed once for all its prompts."""

    tokens: Float[Tensor, "b hw c"]
    """Image embedding, without any mask prompt."""
    positions: Float[Tensor, "hw c"]
    """Positional encoding of the grid."""
    first: tuple[Tensor, Tensor, Tensor] | None = None
    """The first layer's keys and values for tokens, and its queries to tokens, each 1 x heads x hw x c: the same for
    all prompts without a mask. None where they are to be computed per prompt."""


class PromptableDecoder(nn.Module):
    """`decode = upscale(predict(prepare))`; each part is a graph of its own when exported."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.grid: tuple[int, int] = prompt_encoder.image_embedding_size

    def positions(self) -> Float[Tensor, "c g g"]:
        """Positional encoding of the grid, in float32 whatever the weights are: halves cannot hold the phases."""
        with without_autocast(self.prompt_encoder):
            encoding: Tensor = self.prompt_encoder.get_dense_pe()[0]
        return encoding

    def forward(
        self,
        embeddings: Float[Tensor, "b c gh gw"],
        coords: Float[Tensor, "b n p 2"],
        labels: Int[Tensor, "b n p"],
        masks: Float[Tensor, "b n 1 h w"] | None = None,
        has_mask: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Mask logits and predicted IoU for each prompt set.

        Without `masks` no set has a mask prompt; with `has_mask`, only the sets marked 1 use theirs. A model that
        draws boxes draws those of the sets that have none.
        """
        state = self.prepare(embeddings)
        mask_tokens, iou, image_tokens = self.predict(state, coords, labels, masks, has_mask)
        return self.upscale(mask_tokens, image_tokens), iou

    def prepare(self, embeddings: Float[Tensor, "b c gh gw"]) -> ImageState:
        """Everything that needs the image but no prompt."""
        positions = self.positions().flatten(1).T
        return ImageState(embeddings.flatten(2).transpose(1, 2), positions.to(embeddings.dtype))

    def share(self, state: ImageState) -> ImageState:
        """`state` of ONE image with the first layer's projections of it, for prompts without masks."""
        layer = self.mask_decoder.transformer.layers[0]
        image = state.tokens + self.prompt_encoder.no_mask_embed.weight
        reader, writer = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        placed = image + state.positions
        first = (
            by_heads(reader, reader.k_proj(placed)),
            by_heads(reader, reader.v_proj(image)),
            by_heads(writer, writer.q_proj(placed)),
        )
        return ImageState(state.tokens, state.positions, first)

    def predict(
        self,
        state: ImageState,
        coords: Float[Tensor, "b n p 2"],
        labels: Int[Tensor, "b n p"],
        masks: Float[Tensor, "b n 1 h w"] | None = None,
        has_mask: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n 4 c"], Float[Tensor, "b n 4"], Float[Tensor, "b n hw c"]]:
        """Mask tokens, predicted IoU, and the image tokens that `upscale` needs."""
        batch, sets = labels.shape[:2]
        tokens, present = self.embed_tokens(coords, labels)
        if (masks is None or has_mask is not None) and self._draws(labels, state):
            masks, has_mask = self._draw(coords, labels, masks, has_mask)
        image = (state.tokens[:, None] + self._embed_masks(masks, has_mask)).expand(batch, sets, -1, -1)
        first = None if masks is not None else state.first
        queries, keys = two_way(
            self.mask_decoder.transformer, image.flatten(0, 1), state.positions, tokens, present, first
        )
        mask_tokens, iou = self.read_heads(queries)
        sizes = (batch, sets)
        return mask_tokens.unflatten(0, sizes), iou.unflatten(0, sizes), keys.unflatten(0, sizes)

    def _draws(self, labels: Int[Tensor, "b n p"], state: ImageState) -> bool:
        """Whether any of these prompts is drawn. A graph, which cannot look at its prompts, always draws, but for one
        with a shared first layer, which is made for what is not drawn."""
        encoder = self.prompt_encoder
        if not isinstance(encoder, DrawingPromptEncoder):
            return False
        if torch.compiler.is_compiling():
            return state.first is None
        return not labels.is_meta and encoder.draws(labels)

    def _draw(
        self,
        coords: Float[Tensor, "b n p 2"],
        labels: Int[Tensor, "b n p"],
        masks: Float[Tensor, "b n 1 h w"] | None,
        has_mask: Float[Tensor, "b n"] | None,
    ) -> tuple[Float[Tensor, "b n 1 h w"], Float[Tensor, "b n"]]:
        """The sets' mask prompts and, where they have none, their drawings; 1 for the sets that have either."""
        dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        size = 4 * self.grid[0], 4 * self.grid[1]
        drawings, drawn = (part.to(dtype) for part in self.prompt_encoder.drawn(coords, labels, size))
        if masks is None:
            return drawings, drawn
        assert has_mask is not None
        return torch.where(has_mask[..., None, None, None] > 0, masks, drawings), torch.maximum(has_mask, drawn)

    def embed_tokens(
        self, coords: Float[Tensor, "b n p 2"], labels: Int[Tensor, "b n p"]
    ) -> tuple[Float[Tensor, "bn t c"], Bool[Tensor, "bn 1 1 t"]]:
        """The transformer's tokens of every set (IoU, masks, points), and which of them are present."""
        batch, sets = labels.shape[:2]
        decoder = self.mask_decoder
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        sparse = self._embed_points(coords, labels)
        tokens = torch.cat([outputs.expand(batch, sets, -1, -1), sparse], 2).flatten(0, 1)
        present = F.pad(labels != ABSENT, (outputs.shape[0], 0), value=True).flatten(0, 1)
        return tokens, present[:, None, None]

    def read_heads(self, queries: Float[Tensor, "bn t c"]) -> tuple[Float[Tensor, "bn 4 c"], Float[Tensor, "bn 4"]]:
        """Mask tokens and predicted IoU from the transformer's tokens."""
        decoder = self.mask_decoder
        # heads keep a token axis of one: of a plain matrix product and its bias ONNX Runtime makes a float Gemm,
        # even where both operands are integers
        iou = decoder.iou_prediction_head(queries[:, :1])[:, 0]
        return queries[:, 1 : 1 + decoder.num_mask_tokens], iou

    def upscale(
        self, mask_tokens: Float[Tensor, "b n 4 c"], image_tokens: Float[Tensor, "b n hw c"]
    ) -> Float[Tensor, "b n 4 h w"]:
        """Low-resolution mask logits from the transformer's two outputs."""
        batch, sets = mask_tokens.shape[:2]
        decoder, grid = self.mask_decoder, self.grid
        weights = self.mask_weights(mask_tokens.flatten(0, 1))
        first, norm, _, second, _ = decoder.output_upscaling
        # not another's layers in their places
        if decoder.training and type(first) is type(second) is nn.ConvTranspose2d and type(norm) is LayerNorm2d:
            logits = upscaled_by_cells(first, norm, second, image_tokens.flatten(0, 1), weights, grid)
        else:
            image = image_tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
            features = decoder.output_upscaling(image)
            logits = (weights @ features.flatten(2)).unflatten(2, (4 * grid[0], 4 * grid[1]))
        return logits.unflatten(0, (batch, sets))

    def mask_weights(self, mask_tokens: Float[Tensor, "n 4 c"]) -> Float[Tensor, "n 4 c2"]:
        """What each mask weighs the up-scaled channels with: the hypernetworks' output."""
        mlps = self.mask_decoder.output_hypernetworks_mlps
        return torch.cat([mlp(mask_tokens[:, i : i + 1]) for i, mlp in enumerate(mlps)], 1)

    def decode(
        self, embeddings: Float[Tensor, "b c gh gw"], prompts: Prompts
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """`forward` on a `Prompts`."""
        return self(embeddings, prompts.coords, prompts.labels, prompts.masks)

    def _embed_points(self, coords: Float[Tensor, "b n p 2"], labels: Int[Tensor, "b n p"]) -> Float[Tensor, "b n p c"]:
        encoder = self.prompt_encoder
        height, width = encoder.input_image_size
        # segment-anything shifts to the pixel's centre
        normalised = (coords + 0.5) / coords.new_tensor([width, height])
        with without_autocast(encoder):
            positions = encoder.pe_layer._pe_encoding(normalised)
        kinds = torch.cat([embedding.weight for embedding in encoder.point_embeddings])
        known = kinds[labels.clamp(min=0)] + positions.to(kinds.dtype)
        silent = torch.where((labels == NOT_A_POINT)[..., None], encoder.not_a_point_embed.weight, 0.0)
        return torch.where((labels >= 0)[..., None], known, silent)

    def _embed_masks(
        self, masks: Float[Tensor, "b n 1 h w"] | None, has_mask: Float[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n hw c"]:
        none = self.prompt_encoder.no_mask_embed.weight[None, None]
        if masks is None:
            return none
        batch, sets = masks.shape[:2]
        dense = self.prompt_encoder.mask_downscaling(masks.flatten(0, 1))
        dense = dense.flatten(2).transpose(1, 2).unflatten(0, (batch, sets))
        if has_mask is None:
            return dense
        given = has_mask[..., None, None]
        return given * dense + (1 - given) * none


def upscaled_by_cells(
    first: nn.ConvTranspose2d,
    norm: LayerNorm2d,
    second: nn.ConvTranspose2d,
    image_tokens: Float[Tensor, "n hw c"],
    weights: Float[Tensor, "n 4 c2"],
    grid: tuple[int, int],
) -> Float[Tensor, "n 4 h w"]:
    """`weights @ output_upscaling(image)` by matrix products over cells, put in their places at the end, as masks.

    A kernel of 2 that moves by 2 makes four cells of one, whatever lies beside it. With channels last no step turns
    maps over, and those are what a training step on a CPU spends its time on. Only training goes this way: what is
    quantized or exported is seen through the layers, which are not called here.
    """
    cells = _quartered(image_tokens, first)
    cells = F.gelu(F.layer_norm(cells.float(), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    # of bfloat16 GELU's gradient is ten times slower on a CPU
    cells = F.gelu(_quartered(cells.to(image_tokens.dtype), second).float())
    masks = weights @ cells.transpose(1, 2).to(weights.dtype)
    placed = masks.unflatten(2, (*grid, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
    return placed.reshape(*masks.shape[:2], 4 * grid[0], 4 * grid[1])


def _quartered(cells: Float[Tensor, "n m c"], layer: nn.ConvTranspose2d) -> Float[Tensor, "n m4 c2"]:
    """Four cells, row by row, where there was one."""
    kernel = layer.weight.permute(0, 2, 3, 1).flatten(1)
    assert layer.bias is not None
    return (cells @ kernel + layer.bias.repeat(4)).unflatten(2, (4, -1)).flatten(1, 2)


def without_autocast(module: nn.Module) -> AbstractContextManager[object]:
    """A context in which autocast is off where it is on; graphs that are exported then know nothing of it."""
    device = next(module.parameters()).device.type
    # bfloat16 would turn the phases of positions by up to a tenth of a radian
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def two_way(
    transformer: TwoWayTransformer,
    image: Float[Tensor, "b hw c"],
    positions: Float[Tensor, "hw c"],
    tokens: Float[Tensor, "b t c"],
    present: Bool[Tensor, "b 1 1 t"],
    first: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b hw c"]]:
    """segment-anything's TwoWayTransformer, attending only to tokens that are present.

    `first` is the first layer's share of `ImageState`, where there is one.
    """
    queries, keys = tokens, image
    for index, layer in enumerate(transformer.layers):
        queries = attend_self(layer, queries, tokens, present)
        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        shared = first if index == 0 else None
        if shared is not None:
            image_keys, image_values, image_queries = (part.expand(tokens.shape[0], -1, -1, -1) for part in shared)
            asked = by_heads(to_image, to_image.q_proj(queries + tokens))
            read = combine(to_image, asked, image_keys, image_values)
        else:
            placed = keys + positions
            read = (read_image if folds(to_image) else attend)(to_image, queries + tokens, placed, keys)
        queries = layer.norm2(queries + read)
        queries = layer.norm3(queries + layer.mlp(queries))
        if shared is not None:
            token_keys = by_heads(to_tokens, to_tokens.k_proj(queries + tokens))
            token_values = by_heads(to_tokens, to_tokens.v_proj(queries))
            written = combine(to_tokens, image_queries, token_keys, token_values, present)
        else:
            write = write_image if folds(to_tokens) else attend
            written = write(to_tokens, placed, queries + tokens, queries, present)
        keys = layer.norm4(keys + written)
    final = transformer.final_attn_token_to_image
    read = (read_image if folds(final) else attend)(final, queries + tokens, keys + positions, keys)
    queries = queries + read
    return transformer.norm_final_attn(queries), keys


def attend_self(
    layer: TwoWayAttentionBlock,
    queries: Float[Tensor, "b t c"],
    tokens: Float[Tensor, "b t c"],
    present: Bool[Tensor, "b 1 1 t"],
) -> Float[Tensor, "b t c"]:
    """A layer's first step: tokens attend to each other."""
    if layer.skip_first_layer_pe:
        return layer.norm1(attend(layer.self_attn, queries, queries, queries, present))
    query = queries + tokens
    return layer.norm1(queries + attend(layer.self_attn, query, query, queries, present))


def attend(
    attention: Attention,
    q: Float[Tensor, "b nq c"],
    k: Float[Tensor, "b nk c"],
    v: Float[Tensor, "b nk c"],
    present: Bool[Tensor, "b 1 1 nk"] | None = None,
) -> Float[Tensor, "b nq c"]:
    """segment-anything's decoder attention, with a mask over the keys."""
    q, k, v = (by_heads(attention, part) for part in (attention.q_proj(q), attention.k_proj(k), attention.v_proj(v)))
    return combine(attention, q, k, v, present)


def combine(
    attention: Attention,
    q: Float[Tensor, "b h nq dh"],
    k: Float[Tensor, "b h nk dh"],
    v: Float[Tensor, "b h nk dh"],
    present: Bool[Tensor, "b 1 1 nk"] | None = None,
) -> Float[Tensor, "b nq c"]:
    """Attention after its projections."""
    products = getattr(attention, "products", F.scaled_dot_product_attention)
    out = products(q, k, v, present)
    return attention.out_proj(out.transpose(1, 2).flatten(2))
