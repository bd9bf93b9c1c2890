"""Post-training quantization of a SAM's encoder and decoder."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

import numpy as np
from torch import nn

from sam_edge.errors import QuantizationError
from sam_edge.models.quantized import (
    Grid,
    LayerQuantization,
    QuantizedUpscale,
    insert_quantized_layers,
    prepare_for_quantization,
    quantizable,
)
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.calibrate import Ranges, run_on, watched
from sam_edge.quantize.scales import check_bits, quantize_weight


@dataclass(frozen=True)
class QuantizeOptions:
    """What is quantized, and how."""

    weights: int = 8
    """Bits of the weights, 2 to 8, in int8 containers."""
    activations: int = 8
    """Bits of the activations, 2 to 8, in 8-bit containers."""
    metric: Literal["minmax"] = "minmax"
    """How scales are chosen."""
    skip: tuple[str, ...] = ("prompt_encoder.*",)
    """Patterns of layer names left in float; the prompt encoder's are tiny."""
    prompts_per_image: int = 8
    """Points, and as many boxes, prompted on each calibration picture."""
    seed: int = 0
    """Seed of those prompts."""


def quantize_model(model: EdgeSam, images: Iterable[np.ndarray], options: QuantizeOptions) -> dict[str, Ranges]:
    """Quantize every convolution and linear layer of `model` in place, by the ranges seen on `images`.

    Attention products, normalisations and softmax stay in float. Returns the ranges that were seen.

    Raises:
        QuantizationError: bits out of range, an already quantized model, or no calibration picture.
    """
    check_bits(options.weights, "weight")
    check_bits(options.activations, "activation")
    if model.config.quantization is not None:
        raise QuantizationError("this model is quantized already: give the float checkpoint it came from.")
    prepare_for_quantization(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if quantizable(module) and not any(fnmatch(name, pattern) for pattern in options.skip)
    }
    if not layers:
        raise QuantizationError("--skip leaves no layer to quantize.")
    with watched(layers) as ranges:
        seen = run_on(model, images, prompts_per_image=options.prompts_per_image, seed=options.seed)
    if not seen:
        raise QuantizationError("no picture to calibrate on: --images needs at least one readable picture.")
    plans = {name: _plan(module, ranges[name], options) for name, module in layers.items()}
    quantization = {name: plan.as_dict() for name, plan in plans.items()}
    for name, layer in insert_quantized_layers(model, quantization).items():
        weight = layers[name].weight.detach()
        if isinstance(layer, QuantizedUpscale):
            integers, scale = quantize_weight(weight.transpose(0, 1), options.weights)
            layer.set_weight(integers.transpose(0, 1), scale)
        else:
            layer.set_weight(*quantize_weight(weight, options.weights))
    model.config = model.config.replace(quantization=quantization)
    return ranges


def _plan(module: nn.Module, ranges: Ranges, options: QuantizeOptions) -> LayerQuantization:
    bits = options.activations
    output = Grid.of_range(ranges.output_low, ranges.output_high, bits) if isinstance(module, nn.Conv2d) else None
    return LayerQuantization(
        input=Grid.of_range(ranges.input_low, ranges.input_high, bits),
        bits=options.weights,
        axis=1 if isinstance(module, nn.ConvTranspose2d) else 0,
        output=output,
    )
