"""Quantized layers: integer weights, and activations rounded onto an integer grid.

One module is both the simulation in torch and the source of the ONNX graph: its activations pass ONNX's own
QuantizeLinear and DequantizeLinear (`sam_edge.models.grids`). In torch the arithmetic between them is float32 on the
grid's values; a runtime does it in integers. Weights are symmetric, per output channel, in int8 containers.
"""

import operator
from collections.abc import Container
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from segment_anything.modeling.transformer import Attention as DecoderAttention
from timm.layers import Conv2dSame
from torch import Tensor, nn

from sam_edge.errors import QuantizationError
from sam_edge.models.attention import AttentionProducts
from sam_edge.models.grids import Dialect, Grid, OnGrid, OnTwinGrid, TwinGrid, dequantize, quantize
from sam_edge.models.quantized_attention import AttentionQuantization, QuantizedProducts
from sam_edge.models.sam import EdgeSam
from sam_edge.models.timm_encoder import fold_batch_norms, same_padding
from sam_edge.models.vit import split_attention, swap_modules

__all__ = ["Dialect", "Grid", "OnGrid", "TwinGrid", "dequantize", "quantize"]


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer is quantized: an entry of config.json's `quantization`."""

    input: Grid
    """Grid of the layer's input."""
    bits: int = 8
    """Bits of the weights; they lie in int8 containers."""
    axis: int = 0
    """Axis of the weights' scales: output channels."""
    output: Grid | None = None
    """Grid of the layer's output, which convolutions have that are computed as such (see `QuantizedPatches`)."""
    twin: TwinGrid | None = None
    """Twin grid of the layer's input, used in place of `input` where a form of the model takes twins."""

    def __post_init__(self) -> None:
        """Raises QuantizationError for bits or an axis that no weights have, as a config.json may name them."""
        if self.bits not in range(1, 9) or self.axis not in (0, 1):
            raise QuantizationError(
                f"weights have 1 to 8 bits and scales along axis 0 or 1, got {self.bits!r:.40} and {self.axis!r:.40}."
            )

    def as_dict(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {
            "bits": self.bits,
            "activation_bits": self.input.bits,
            "scale": self.input.scale,
            "zero_point": self.input.zero_point,
            "axis": self.axis,
            "split": asdict(self.twin) if self.twin else None,
            "output": asdict(self.output) if self.output else None,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LayerQuantization":
        """The layer that `as_dict` described."""
        grid = Grid(values["scale"], values["zero_point"], values["activation_bits"])
        output = Grid(**values["output"]) if values.get("output") else None
        twin = TwinGrid(**values["split"]) if values.get("split") else None
        return cls(grid, values["bits"], values["axis"], output, twin)


class QuantizedLayer(nn.Module):
    """What quantized layers share: integer weights with a scale per output channel, and the input's grid."""

    weight: Int8[Tensor, "out *rest"]
    weight_scale: Float[Tensor, "out"]
    weight_zero_point: Int8[Tensor, "out"]

    def __init__(self, weight: Tensor, bias: Tensor | None, channels: int, plan: LayerQuantization) -> None:
        super().__init__()
        self.plan = plan
        self.register_buffer("weight", torch.zeros(weight.shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(channels))
        self.register_buffer("weight_zero_point", torch.zeros(channels, dtype=torch.int8), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.input = OnGrid(plan.input)
        self.twin = OnTwinGrid(plan.twin) if plan.twin else None
        self.use_twin = True
        self.use_grids = True
        self.output = OnGrid(plan.output) if plan.output else nn.Identity()

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """The input on its grid; on a twin grid the two parts that sum to it."""
        if not self.use_grids:
            return (x,)
        return self.twin(x) if self.twin is not None and self.use_twin else (self.input(x),)

    def result(self, y: Tensor) -> Tensor:
        """The output, on its grid where it has one."""
        return self.output(y) if self.use_grids else y

    def dequantized(self) -> Float[Tensor, "*shape"]:
        """The weights in float, in the float layer's own layout."""
        return dequantize(self.weight, self.weight_scale, self.weight_zero_point, self.plan.axis)

    def product(self, x: Float[Tensor, "*n k"], weight: Float[Tensor, "k m"]) -> Float[Tensor, "*n m"]:
        """The input on its grid times dequantized weights: of a twin grid the sum of two products."""
        return reduce(operator.add, (torch.matmul(part, weight) for part in self.parts(x)))

    def set_weight(self, integers: Int8[Tensor, "*shape"], scale: Float[Tensor, "out"]) -> None:
        """Take quantized weights, in the float layer's own layout."""
        with torch.no_grad():
            self.weight.copy_(integers)
            self.weight_scale.copy_(scale)


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` with integer weights [out, in]."""

    def __init__(self, linear: nn.Linear, plan: LayerQuantization) -> None:
        super().__init__(linear.weight, linear.bias, linear.out_features, plan)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Float[Tensor, "*n in_"]) -> Float[Tensor, "*n out"]:
        """x W^T + b."""
        # transposed before it is dequantized: runtimes see an integer product only in DQ -> MatMul
        weight = dequantize(self.weight.t().contiguous(), self.weight_scale, self.weight_zero_point, 1)
        y = self.product(x, weight)
        return self.result(y if self.bias is None else y + self.bias)


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` with integer weights [out, in / groups, kh, kw]."""

    def __init__(self, conv: nn.Conv2d, plan: LayerQuantization) -> None:
        super().__init__(conv.weight, conv.bias, conv.out_channels, plan)
        self.stride, self.padding = conv.stride, cast(tuple[int, ...], conv.padding)
        self.dilation, self.groups = conv.dilation, conv.groups
        self.kernel, self.pads_as_needed = conv.kernel_size, isinstance(conv, Conv2dSame)
        self.rounded_by: tuple[QuantizedLayer, ...] = ()
        """The layer behind, whose grid is the output's too, where `link_clamps` found one; in a tuple, as no part."""

    def result(self, y: Tensor) -> Tensor:
        """The output, on its grid unless the next layer's does for both."""
        if any(layer.use_grids and layer.input.dialect == "cpu" for layer in self.rounded_by):
            return y
        return super().result(y)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """The convolution."""
        (given,), weight = self.parts(x), self.dequantized()
        if self.pads_as_needed:
            size = (x.shape[2], x.shape[3])
            given = F.pad(given, same_padding(self.kernel, self.stride, self.dilation, size))
        bias = self.counted_bias() if self.use_grids else self.bias
        return self.result(F.conv2d(given, weight, bias, self.stride, self.padding, self.dilation, self.groups))

    def counted_bias(self) -> Float[Tensor, "out"] | None:
        """The bias in whole steps of the accumulator, to which ONNX Runtime rounds it anyway.

        In 6 bits a step is up to half of the output's: a bias in float here would be another model than is exported.
        """
        if self.bias is None:
            return None
        step = self.input.scale * self.weight_scale
        return (self.bias / step).round() * step


class QuantizedPatches(QuantizedLayer):
    """A convolution as a matrix product over patches; weights are [out, in, kh, kw].

    Of a convolution, runtimes compute in integers only what they may also round to 8 bits behind it, with one step for
    all channels; a product's result stays in float. So the convolutions are computed whose result everything reads: the
    patch embedding, and the neck.
    """

    def __init__(self, conv: nn.Conv2d, plan: LayerQuantization) -> None:
        super().__init__(conv.weight, conv.bias, conv.out_channels, plan)
        self.kernel, self.stride = cast(tuple[int, int], conv.kernel_size), cast(tuple[int, int], conv.stride)
        self.padding = cast(tuple[int, int], conv.padding)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """The convolution."""
        overlap = self.kernel != self.stride
        # of TensorRT's convolutions the output may stay in float
        as_convolution = not self.use_grids or (overlap and self.input.dialect == "tensorrt")
        if as_convolution or not torch.compiler.is_exporting():
            (given,) = self.parts(x)
            return F.conv2d(given, self.dequantized(), self.bias, self.stride, self.padding)
        pixels = x.permute(0, 2, 3, 1)
        patches = self._overlapping(pixels) if overlap else self.input(self._tiles(pixels))
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        y = patches @ dequantize(weight, self.weight_scale, self.weight_zero_point, 1)
        return (y if self.bias is None else y + self.bias).permute(0, 3, 1, 2)

    def _tiles(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 kkc"]:
        (kh, kw), (height, width) = self.kernel, (x.shape[1] // self.kernel[0], x.shape[2] // self.kernel[1])
        whole = x[:, : height * kh, : width * kw]
        return whole.unflatten(2, (width, kw)).unflatten(1, (height, kh)).transpose(2, 3).flatten(3)

    def _overlapping(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 kkc"]:
        """Patches put together as integers: bytes to move, and runtimes want the grid next to the product."""
        grid, (kh, kw), (down, right), (top, left) = self.input, self.kernel, self.stride, self.padding
        padded = F.pad(grid.integers(x), (0, 0, left, left, top, top), value=self.plan.input.zero_point)
        # the first rows and columns of patches end where a kernel no longer fits
        height, width = (padded.shape[axis] - size + 1 for axis, size in ((1, kh), (2, kw)))
        shifts = [padded[:, i : i + height : down, j : j + width : right] for i in range(kh) for j in range(kw)]
        return dequantize(torch.cat(shifts, -1), grid.scale, grid.zero_point, 0)


class QuantizedUpscale(QuantizedLayer):
    """A 2 x 2 transposed convolution of stride 2, as a matrix product and a pixel shuffle.

    No runtime computes a quantized transposed convolution in integers; this form they do. Weights are
    [in, out, 2, 2], as in `nn.ConvTranspose2d`.
    """

    def __init__(self, conv: nn.ConvTranspose2d, plan: LayerQuantization) -> None:
        if conv.kernel_size != (2, 2) or conv.stride != (2, 2) or conv.groups != 1:
            raise QuantizationError("only 2 x 2 transposed convolutions of stride 2 can be quantized.")
        super().__init__(conv.weight, conv.bias, conv.out_channels, plan)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out 2*h 2*w"]:
        """The up-scaled map."""
        height, width = x.shape[-2:]
        out = self.weight.shape[1]
        scale, zero = self.weight_scale.repeat_interleave(4), self.weight_zero_point.repeat_interleave(4)
        weight = dequantize(self.weight.flatten(1), scale, zero, 1)
        tokens = x.flatten(2).transpose(1, 2)
        cells = self.product(tokens, weight)
        patches = cells.unflatten(2, (out, 2, 2)).unflatten(1, (height, width))
        y = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return self.result(y if self.bias is None else y + self.bias[:, None, None])


_FORMS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
    Conv2dSame: QuantizedConv2d,
    nn.ConvTranspose2d: QuantizedUpscale,
}


def rounds_output(name: str, module: nn.Module) -> bool:
    """Whether a layer's output needs a grid: a convolution's, but for those computed as products over patches.

    These are the ones whose kernels, larger than a pixel, cover every pixel once, and the image encoder's neck.
    """
    if not isinstance(module, nn.Conv2d):
        return False
    tiles = module.kernel_size == module.stride != (1, 1) and module.padding == (0, 0)
    return module.groups > 1 or module.dilation != (1, 1) or not (tiles or name.startswith("image_encoder.neck."))


def quantizable(module: nn.Module) -> bool:
    """True for a layer, or the products of an attention, that has a quantized form."""
    return type(module) in _FORMS or type(module) is AttentionProducts


def prepare_for_quantization(model: EdgeSam) -> None:
    """Give every matrix a layer of its own, in place and without changing the function.

    A `vit` becomes the same `slim_vit` (q, k and v apart); batch norms are folded into convolutions; the
    decoder's attentions get their products as a module.
    """
    if model.config.arch == "vit":
        split_attention(model.image_encoder)
        model.config = model.config.replace(arch="slim_vit")
    elif model.config.arch == "tiny_vit":
        from timm.models.tiny_vit import ConvNorm

        swap_modules(model, lambda module: isinstance(module, ConvNorm), lambda module: module.fuse())  # type: ignore[operator]
    elif model.config.arch == "timm":
        fold_batch_norms(model.image_encoder)
    for module in model.mask_decoder.modules():
        if isinstance(module, DecoderAttention) and not hasattr(module, "products"):
            module.products = AttentionProducts()


def insert_quantized_layers(model: EdgeSam, quantization: dict[str, dict[str, Any]]) -> dict[str, nn.Module]:
    """Replace each named float layer by its quantized form, weights yet to be set; returns what was put where.

    Raises:
        QuantizationError: a name that is no quantizable layer of the model, or grids of other heads than it has.
    """
    layers = {name: module for name, module in model.named_modules() if quantizable(module)}
    for name in quantization:
        if name not in layers:
            raise QuantizationError(f"{name} is not a layer of this model that can be quantized.")
        if isinstance(layers[name], AttentionProducts):
            _check_heads(model.get_submodule(name.rpartition(".")[0]), name, quantization[name])
    entries = {id(layers[name]): entry for name, entry in quantization.items()}
    return swap_modules(model, lambda module: id(module) in entries, lambda module: form(module, entries[id(module)]))


def _check_heads(attention: nn.Module, name: str, entry: dict[str, Any]) -> None:
    """Raises QuantizationError for other heads than an attention has: one end would be spread over all of them."""
    heads = getattr(attention, "heads", None) or getattr(attention, "num_heads", None)
    if heads is not None and len(entry["heads"]["q"]) != heads:
        raise QuantizationError(f"{name} has {heads} heads, and its quantization {len(entry['heads']['q'])}.")


def form(module: nn.Module, entry: dict[str, Any]) -> nn.Module:
    """The quantized form of a float layer by its entry in config.json; the weights are yet to be set."""
    if isinstance(module, AttentionProducts):
        return QuantizedProducts(AttentionQuantization.from_dict(entry))
    plan = LayerQuantization.from_dict(entry)
    if isinstance(module, nn.Conv2d) and plan.output is None:
        return QuantizedPatches(module, plan)
    return _FORMS[type(module)](module, plan)  # type: ignore[arg-type, call-arg]


def set_dialect(model: nn.Module, dialect: Dialect) -> None:
    """Switch every activation grid of a quantized model to a dialect."""
    for module in model.modules():
        if isinstance(module, OnGrid):
            module.set_dialect(dialect)


def set_twin(model: nn.Module, on: bool) -> None:
    """Use twin grids where there are any, or the plain grids beside them."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer | QuantizedProducts):
            module.use_twin = on


def set_integers(model: nn.Module, integer: Container[str]) -> None:
    """Compute the named layers and attention products of a quantized model on their integer grids, and all others in
    float, of integer weights."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer | QuantizedProducts):
            module.use_grids = name in integer


def in_float(module: nn.Module) -> bool:
    """Whether a layer, or an attention's products, computes in float."""
    if isinstance(module, QuantizedLayer | QuantizedProducts):
        return not module.use_grids
    return type(module) in (*_FORMS, AttentionProducts)


def float_weight(layer: nn.Module) -> Float[Tensor, "*shape"]:
    """The weights of a layer that computes in float."""
    return layer.dequantized() if isinstance(layer, QuantizedLayer) else cast(Tensor, layer.weight)
