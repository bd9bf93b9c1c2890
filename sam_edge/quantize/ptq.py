"""Post-training quantization of a SAM's encoder and decoder."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

import numpy as np
from torch import nn

from sam_edge.errors import QuantizationError
from sam_edge.models.attention import AttentionProducts
from sam_edge.models.checkpoint import round_to_halves
from sam_edge.models.quantized import (
    QuantizedLayer,
    QuantizedUpscale,
    form,
    prepare_for_quantization,
    quantizable,
    rounds_output,
)
from sam_edge.models.quantized_attention import QuantizedProducts
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.calibrate import Observer, Walk
from sam_edge.quantize.rounding import compensated_weight
from sam_edge.quantize.samples import Seen
from sam_edge.quantize.scales import check_bits, quantize_weight
from sam_edge.quantize.search import Metric, search_layer
from sam_edge.quantize.search_attention import search_attention

OnStep = Callable[[int, int, str], None]
Rounding = Literal["auto", "nearest", "compensated"]


@dataclass(frozen=True)
class QuantizeOptions:
    """What is quantized, and how."""

    weights: int = 8
    """Bits of the weights, 2 to 8: packed on disk, in int8 containers at run time."""
    activations: int = 8
    """Bits of the activations, 2 to 8, in 8-bit containers."""
    metric: Metric = "hessian"
    """How scales are chosen: the task's second-order error, the squared error of each layer's output, or extremes."""
    curvature: Literal["fisher", "quantized"] = "fisher"
    """Where `hessian` takes second derivatives: outcomes drawn at the float model, or the loss of the quantized one."""
    twin: bool = True
    """Try two step sizes (twin scales) for activations behind softmax and GELU, and take them where they err less."""
    per_layer: bool = False
    """One weight scale per linear layer, as the paper has it, in place of one per output channel."""
    skip: tuple[str, ...] = ("prompt_encoder.*",)
    """Patterns of layer names left in float; the prompt encoder's are tiny."""
    rounding: Rounding = "auto"
    """How weights are rounded: to the `nearest`, or `compensated`, so that weights yet to be rounded make up for the
    error (GPTQ); `auto` compensates under `hessian`, whose factor of a layer's inputs that takes."""
    prompts_per_image: int = 8
    """Points, and as many boxes, prompted on each calibration picture."""
    rows: int = 64
    """Rows of each layer's input kept of each picture; candidates are scored on them."""
    seed: int = 0
    """Seed of prompts, rows and outcomes."""

    def rounds_in_turn(self, metric: Metric) -> bool:
        """Whether weights are rounded one after the other where scales are chosen by `metric`."""
        return self.rounding == "compensated" or (self.rounding == "auto" and metric == "hessian")


class Quantizer:
    """A model, its layers' float forms, and what they saw: enough to put any layer into any precision."""

    def __init__(
        self,
        model: EdgeSam,
        layers: dict[str, nn.Module],
        seen: dict[str, Seen],
        options: QuantizeOptions,
        pictures: int,
    ) -> None:
        self.model, self.layers, self.seen, self.options, self.pictures = model, layers, seen, options, pictures

    def integer(self, name: str, bits: tuple[int, int], metric: Metric | None = None) -> nn.Module:
        """A layer's quantized form with the scales that a search finds; `bits` of weights and activations."""
        module, seen = self.layers[name], self.seen[name]
        metric, twin, per_layer = metric or self.options.metric, self.options.twin, self.options.per_layer
        device = next(self.model.parameters()).device
        if isinstance(module, AttentionProducts):
            return QuantizedProducts(search_attention(seen, bits=bits[1], metric=metric, twin=twin)).to(device)
        rounds = rounds_output(name, module)
        plan, scale = search_layer(
            module, seen, bits=bits, metric=metric, twin=twin, per_layer=per_layer, rounds_output=rounds
        )
        layer = form(module, plan.as_dict())
        assert isinstance(layer, QuantizedLayer)
        weight = module.weight.detach().cpu()  # type: ignore[operator]
        if self.options.rounds_in_turn(metric):
            layer.set_weight(compensated_weight(module, seen, plan, scale), scale)
        elif isinstance(layer, QuantizedUpscale):
            integers, scale = quantize_weight(weight.transpose(0, 1), bits[0], scale)
            layer.set_weight(integers.transpose(0, 1), scale)
        else:
            layer.set_weight(*quantize_weight(weight, bits[0], scale))
        return layer.to(device)

    def put(self, name: str, module: nn.Module) -> None:
        """Put a form of a layer into the model, and its entry into the config, or out of it for the float form."""
        self.model.set_submodule(name, module)
        entries = dict(self.model.config.quantization or {})
        entries.pop(name, None)
        if module is not self.layers[name]:
            entries[name] = module.plan.as_dict()  # type: ignore[union-attr, operator]
        self.model.config = self.model.config.replace(quantization=dict(sorted(entries.items())) or None)


def quantize_model(
    model: EdgeSam, images: Sequence[np.ndarray], options: QuantizeOptions, on_step: OnStep | None = None
) -> Quantizer:
    """Quantize every convolution, linear layer and attention product of `model` in place.

    Normalisations, softmax and the last product of masks (4 x 32 weights that the image itself makes) stay in float.
    `on_step(done, total, text)` is called after each picture and each layer.

    Raises:
        QuantizationError: bits out of range, an already quantized model, or no calibration picture.
    """
    check_bits(options.weights, "weight")
    check_bits(options.activations, "activation")
    if model.config.quantization is not None:
        raise QuantizationError("this model is quantized already: give the float checkpoint it came from.")
    if not len(images):
        raise QuantizationError("no picture to calibrate on: --images needs at least one readable picture.")
    prepare_for_quantization(model)
    layers = layers_to_quantize(model, options.skip)
    walk = Walk(options.rows, options.prompts_per_image, options.seed)
    twice = options.metric == "hessian" and options.curvature == "quantized"
    done, total = 0, (1 + twice) * (len(images) + len(layers))

    def step(text: str) -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total, text)

    fisher = options.metric == "hessian" and not twice
    seen = Observer(model, fisher).observe(layers, images, walk, on_image=lambda: step("calibrating"))
    # a layer that nothing reached has nothing to search by
    layers = {name: module for name, module in layers.items() if seen[name].total}
    quantizer = Quantizer(model, layers, seen, options, len(images))
    bits = options.weights, options.activations

    def quantize_all(metric: Metric) -> dict[str, nn.Module]:
        integers = {}
        for name in layers:
            integers[name] = quantizer.integer(name, bits, metric)
            step(name)
        for name, module in integers.items():
            quantizer.put(name, module)
        return integers

    if twice:
        reference = deepcopy(model)
        integers = quantize_all("mse")
        observer = Observer(model, True, reference)
        curved = observer.observe(integers, images, walk, watch_as=layers, on_image=lambda: step("calibrating"))
        for name, module in layers.items():
            seen[name].take_gradients(curved[name])
            quantizer.put(name, module)
    quantize_all(options.metric)
    round_to_halves(model)
    return quantizer


def layers_to_quantize(model: EdgeSam, skip: tuple[str, ...]) -> dict[str, nn.Module]:
    """What is to be quantized of a prepared model, by name.

    Raises:
        QuantizationError: nothing is left.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if quantizable(module) and not any(fnmatch(name, pattern) for pattern in skip)
    }
    if not layers:
        raise QuantizationError("--skip leaves no layer to quantize.")
    return layers
