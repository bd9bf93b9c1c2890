"""A SAM of any of our architectures: segment-anything's `Sam`, built from a config."""

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from sam_edge.models.decoder import PromptableDecoder
from sam_edge.models.drawn_prompts import prompt_encoder
from sam_edge.models.vit import build_vit
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.runtime import Runtime

POSITION_SPREAD = 4.8
"""How much finer than SAM's the finest positional frequencies start, log-uniformly up from SAM's: with SAM's alone,
places less than a twelfth of the canvas apart look alike, and small boxes are learned very slowly."""
POSITION_GAIN = 2.0
"""Gain of the projections that cross attention starts with: sharp enough to tell positions a few tokens apart."""


class EdgeSam(Sam):
    """segment-anything's `Sam` that knows its config, and decodes in batches through `decoder`.

    Being a `Sam`, it works wherever one does: `SamPredictor`, `SamAutomaticMaskGenerator`, other people's code.
    """

    def __init__(self, config: ModelConfig) -> None:
        dim, grid = config.decoder.dim, (config.grid, config.grid)
        super().__init__(
            image_encoder=build_encoder(config),
            prompt_encoder=prompt_encoder(
                config.decoder,
                embed_dim=dim,
                image_embedding_size=grid,
                input_image_size=(config.image_size, config.image_size),
                mask_in_chans=config.decoder.mask_channels,
            ),
            mask_decoder=MaskDecoder(
                transformer_dim=dim,
                transformer=TwoWayTransformer(
                    depth=config.decoder.depth,
                    embedding_dim=dim,
                    num_heads=config.decoder.heads,
                    mlp_dim=config.decoder.mlp,
                ),
                iou_head_hidden_dim=config.decoder.iou_hidden,
            ),
            pixel_mean=list(config.pixel_mean),
            pixel_std=list(config.pixel_std),
        )
        self.config = config
        self.eval()

    @property
    def decoder(self) -> PromptableDecoder:
        """The prompt encoder and mask decoder as one batched module; it shares this model's weights."""
        return PromptableDecoder(self.prompt_encoder, self.mask_decoder)

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embedding of normalised, padded pixels."""
        return self.image_encoder(pixels)

    def runtime(self) -> Runtime:
        """This model behind the contract that predictor and everything mode work on, where it is."""
        from sam_edge.models.torch_runtime import TorchRuntime

        return TorchRuntime(self, str(self.device))


def build_encoder(config: ModelConfig) -> nn.Module:
    """The image encoder that `config` describes, randomly initialised."""
    if config.arch == "tiny_vit":
        from sam_edge.models.tiny_vit import build_tiny_vit

        return build_tiny_vit(config)
    if config.arch == "timm":
        from sam_edge.models.timm_encoder import TimmEncoder

        return TimmEncoder(config)
    return build_vit(config)


def initialise(model: EdgeSam, seed: int) -> None:
    """Seeded random weights for training from scratch.

    Every layer starts as PyTorch starts it, which for the decoder is how SAM was started too: its tokens and prompt
    embeddings need the size of its positional encodings, or all prompts look alike for thousands of steps.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        positions = getattr(model.image_encoder, "pos_embed", None)
        if positions is not None:
            nn.init.trunc_normal_(positions, std=0.02)
        frequencies = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        frequencies.normal_().mul_(POSITION_SPREAD ** torch.linspace(0, 1, frequencies.shape[1]))
        _attend_by_position(model.mask_decoder)


def _attend_by_position(decoder: MaskDecoder) -> None:
    """Let attention start where the prompt points, and let prompts keep apart.

    With q and k projected alike, a prompt's token and the pixels at its position already match by their positional
    encodings. The first self-attention has no residual path: unless it starts as the identity, it replaces all tokens
    by one mean. Without both, training has to find this out first, and predicts empty masks for as long.
    """
    transformer = decoder.transformer
    attentions = [transformer.layers[0].self_attn, transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        nn.init.xavier_uniform_(attention.q_proj.weight, gain=POSITION_GAIN)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    first = transformer.layers[0].self_attn
    nn.init.eye_(first.v_proj.weight)
    nn.init.eye_(first.out_proj.weight)
