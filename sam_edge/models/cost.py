"""What a model costs: parameters and multiply-accumulates, counted on the meta device without any memory."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.cost import Cost
from sam_edge.segment.prompts import Prompts

LAYER_OPERATORS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution}
"""Operators of linear and convolutional layers; attention runs as batched products or fused attention."""


def cost(config: ModelConfig) -> Cost:
    """Count parameters and MACs of the model that `config` describes, at its image size.

    Raises:
        ModelError: a config that describes no buildable model.
    """
    with torch.device("meta"), torch.no_grad():
        model = EdgeSam(config)
        pixels = torch.zeros(1, 3, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as encoding:
            embeddings = model.encode(pixels)
        with FlopCounterMode(display=False) as decoding:
            model.decoder.decode(embeddings, _one_point())
    by_operator = encoding.get_flop_counts()["Global"]
    layers = sum(flops for operator, flops in by_operator.items() if operator in LAYER_OPERATORS)
    return Cost(
        parameters=_parameters(model),
        encoder_parameters=_parameters(model.image_encoder),
        encoder_macs=layers // 2,
        encoder_macs_with_attention=sum(by_operator.values()) // 2,
        decoder_macs=decoding.get_total_flops() // 2,
    )


def _one_point() -> Prompts:
    points: Tensor = torch.zeros(1, 1, 1, 2)
    return Prompts.build(points, torch.ones(1, 1, 1, dtype=torch.long))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
