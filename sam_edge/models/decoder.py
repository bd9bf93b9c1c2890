"""SAM's prompt encoder and mask decoder, over B images x N prompt sets x P points.

segment-anything's own modules hold the weights; only the walk through them is written again, because theirs
takes one image at a time, cannot leave a point out of attention, and branches on data, which no exporter follows.
A test holds the walk to segment-anything's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn

from sam_edge.models.prompts import ABSENT, NOT_A_POINT, Prompts


@dataclass(frozen=True)
class ImageState:
    """What depends on the image alone, computed once for all its prompts."""

    tokens: Float[Tensor, "b hw c"]
    """Image embedding, without any mask prompt."""
    positions: Float[Tensor, "hw c"]
    """Positional encoding of the grid."""


class PromptableDecoder(nn.Module):
    """`decode = upscale(predict(prepare))`; each part is a graph of its own when exported."""

    def __init__(self, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def forward(
        self,
        embeddings: Float[Tensor, "b c gh gw"],
        coords: Float[Tensor, "b n p 2"],
        labels: Int[Tensor, "b n p"],
        masks: Float[Tensor, "b n 1 h w"] | None = None,
        has_mask: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Mask logits and predicted IoU for each prompt set.

        Without `masks` no set has a mask prompt; with `has_mask`, only the sets marked 1 use theirs.
        """
        state = self.prepare(embeddings)
        mask_tokens, iou, image_tokens = self.predict(state, coords, labels, masks, has_mask)
        return self.upscale(mask_tokens, image_tokens), iou

    def prepare(self, embeddings: Float[Tensor, "b c gh gw"]) -> ImageState:
        """Everything that needs the image but no prompt."""
        # positions are computed in float32 whatever the weights are: halves cannot hold the phases
        positions = self.prompt_encoder.get_dense_pe()[0].flatten(1).T
        return ImageState(embeddings.flatten(2).transpose(1, 2), positions.to(embeddings.dtype))

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
        decoder = self.mask_decoder
        sparse = self._embed_points(coords, labels)
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(batch, sets, -1, -1), sparse], 2).flatten(0, 1)
        present = F.pad(labels != ABSENT, (outputs.shape[0], 0), value=True).flatten(0, 1)
        image = (state.tokens[:, None] + self._embed_masks(masks, has_mask)).expand(batch, sets, -1, -1)
        queries, keys = two_way(
            decoder.transformer, image.flatten(0, 1), state.positions, tokens, present[:, None, None]
        )
        count = decoder.num_mask_tokens
        # heads keep a token axis of one: of a plain matrix product and its bias ONNX Runtime makes a float Gemm,
        # even where both operands are integers
        iou = decoder.iou_prediction_head(queries[:, :1])[:, 0]
        return (
            queries[:, 1 : 1 + count].unflatten(0, (batch, sets)),
            iou.unflatten(0, (batch, sets)),
            keys.unflatten(0, (batch, sets)),
        )

    def upscale(
        self, mask_tokens: Float[Tensor, "b n 4 c"], image_tokens: Float[Tensor, "b n hw c"]
    ) -> Float[Tensor, "b n 4 h w"]:
        """Low-resolution mask logits from the transformer's two outputs."""
        batch, sets = mask_tokens.shape[:2]
        decoder, grid = self.mask_decoder, self.prompt_encoder.image_embedding_size
        image = image_tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        features = decoder.output_upscaling(image)
        tokens = mask_tokens.flatten(0, 1)
        mlps = decoder.output_hypernetworks_mlps
        weights = torch.cat([mlp(tokens[:, i : i + 1]) for i, mlp in enumerate(mlps)], 1)
        logits = (weights @ features.flatten(2)).unflatten(2, (4 * grid[0], 4 * grid[1]))
        return logits.unflatten(0, (batch, sets))

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


def two_way(
    transformer: TwoWayTransformer,
    image: Float[Tensor, "b hw c"],
    positions: Float[Tensor, "hw c"],
    tokens: Float[Tensor, "b t c"],
    present: Bool[Tensor, "b 1 1 t"],
) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b hw c"]]:
    """segment-anything's TwoWayTransformer, attending only to tokens that are present."""
    queries, keys = tokens, image
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = attend(layer.self_attn, queries, queries, queries, present)
        else:
            query = queries + tokens
            queries = queries + attend(layer.self_attn, query, query, queries, present)
        queries = layer.norm1(queries)
        to_image = layer.cross_attn_token_to_image
        queries = layer.norm2(queries + attend(to_image, queries + tokens, keys + positions, keys))
        queries = layer.norm3(queries + layer.mlp(queries))
        to_tokens = layer.cross_attn_image_to_token
        keys = layer.norm4(keys + attend(to_tokens, keys + positions, queries + tokens, queries, present))
    final = transformer.final_attn_token_to_image
    queries = queries + attend(final, queries + tokens, keys + positions, keys)
    return transformer.norm_final_attn(queries), keys


def attend(
    attention: Attention,
    q: Float[Tensor, "b nq c"],
    k: Float[Tensor, "b nk c"],
    v: Float[Tensor, "b nk c"],
    present: Bool[Tensor, "b 1 1 nk"] | None = None,
) -> Float[Tensor, "b nq c"]:
    """segment-anything's decoder attention, with a mask over the keys."""
    heads = attention.num_heads
    q, k, v = (
        layer(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for layer, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=present)
    return attention.out_proj(out.transpose(1, 2).flatten(2))
