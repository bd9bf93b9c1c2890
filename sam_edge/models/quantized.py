"""Quantized layers: integer weights, and activations rounded onto an integer grid.

One module is both the simulation in torch and the source of the ONNX graph: its two custom operators are, to the
letter, ONNX's QuantizeLinear and DequantizeLinear, and the exporter writes them as such. In torch the arithmetic
between them is float32 on the grid's values; a runtime does it in integers.

Activations come in two dialects: `cpu` (asymmetric, uint8) and `tensorrt` (symmetric, int8, zero point 0).
Weights are symmetric int8 per output channel in both.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from sam_edge.errors import QuantizationError
from sam_edge.models.sam import EdgeSam
from sam_edge.models.vit import split_attention, swap_modules

Dialect = Literal["cpu", "tensorrt"]


@torch.library.custom_op("sam_edge::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """ONNX QuantizeLinear, per tensor: round half to even, add the zero point, saturate to its type."""
    limits = torch.iinfo(zero_point.dtype)
    return ((x / scale).round() + zero_point).clamp(limits.min, limits.max).to(zero_point.dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


@torch.library.custom_op("sam_edge::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """ONNX DequantizeLinear: (q - zero point) x scale, along `axis` where the scale has more than one entry."""
    shape = [1] * q.ndim
    if scale.ndim:
        shape[axis] = -1
    return (q.float() - zero_point.float().reshape(shape)) * scale.reshape(shape)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


@dataclass(frozen=True)
class Grid:
    """An asymmetric grid of 2^bits values for an activation: value = (q - zero_point) x scale, q from 0."""

    scale: float
    zero_point: int
    bits: int = 8

    @classmethod
    def of_range(cls, low: float, high: float, bits: int = 8) -> "Grid":
        """The grid whose ends are `low` and `high`, widened to hold 0 exactly (Jacob et al. 2018, eq. 3)."""
        low, high = min(low, 0.0), max(high, 0.0)
        steps = 2**bits - 1
        scale = max(high - low, 1e-12) / steps
        return cls(scale, min(max(round(-low / scale), 0), steps), bits)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value on the grid."""
        return -self.zero_point * self.scale, (2**self.bits - 1 - self.zero_point) * self.scale

    def in_dialect(self, dialect: Dialect) -> tuple[float, int, int, int, torch.dtype]:
        """Scale, zero point, smallest and largest integer, and container of this grid in a dialect."""
        if dialect == "cpu":
            return self.scale, self.zero_point, 0, 2**self.bits - 1, torch.uint8
        top = 2 ** (self.bits - 1) - 1
        low, high = self.range
        return max(-low, high) / top, 0, -top - 1, top, torch.int8


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
    """Grid of the layer's output; convolutions have one, since runtimes only then compute them in integers."""

    def as_dict(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {
            "bits": self.bits,
            "activation_bits": self.input.bits,
            "scale": self.input.scale,
            "zero_point": self.input.zero_point,
            "axis": self.axis,
            "split": None,
            "output": asdict(self.output) if self.output else None,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LayerQuantization":
        """The layer that `as_dict` described."""
        grid = Grid(values["scale"], values["zero_point"], values["activation_bits"])
        output = Grid(**values["output"]) if values.get("output") else None
        return cls(grid, values["bits"], values["axis"], output)


class OnGrid(nn.Module):
    """Round an activation onto a grid."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.set_dialect("cpu")

    def set_dialect(self, dialect: Dialect) -> None:
        """Use the grid's form in `dialect`."""
        scale, zero_point, low, high, container = self.grid.in_dialect(dialect)
        limits = torch.iinfo(container)
        # narrower grids than their container saturate early
        narrow = (low, high) != (limits.min, limits.max)
        self.clip = ((low - zero_point) * scale, (high - zero_point) * scale) if narrow else None
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32), persistent=False)
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=container), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values on the grid."""
        if self.clip is not None:
            x = x.clamp(*self.clip)
        return dequantize(quantize(x, self.scale, self.zero_point), self.scale, self.zero_point, 0)


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
        self.output = OnGrid(plan.output) if plan.output else nn.Identity()

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
        y = torch.matmul(self.input(x), weight)
        return self.output(y if self.bias is None else y + self.bias)


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` with integer weights [out, in / groups, kh, kw]."""

    def __init__(self, conv: nn.Conv2d, plan: LayerQuantization) -> None:
        super().__init__(conv.weight, conv.bias, conv.out_channels, plan)
        self.stride, self.padding = conv.stride, cast(tuple[int, ...], conv.padding)
        self.dilation, self.groups = conv.dilation, conv.groups

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b out h2 w2"]:
        """The convolution."""
        weight = dequantize(self.weight, self.weight_scale, self.weight_zero_point, 0)
        y = F.conv2d(self.input(x), weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return self.output(y)


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
        cells = torch.matmul(self.input(x.flatten(2).transpose(1, 2)), weight)
        patches = cells.unflatten(2, (out, 2, 2)).unflatten(1, (height, width))
        y = patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return self.output(y if self.bias is None else y + self.bias[:, None, None])


_FORMS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
    nn.ConvTranspose2d: QuantizedUpscale,
}


def quantizable(module: nn.Module) -> bool:
    """True for a layer that has a quantized form."""
    return type(module) in _FORMS


def prepare_for_quantization(model: EdgeSam) -> None:
    """Give every matrix a layer of its own, in place and without changing the function.

    A `vit` becomes the same `slim_vit` (q, k and v apart); TinyViT's batch norms are folded into its convolutions.
    """
    if model.config.arch == "vit":
        split_attention(model.image_encoder)
        model.config = model.config.replace(arch="slim_vit")
    elif model.config.arch == "tiny_vit":
        from timm.models.tiny_vit import ConvNorm

        swap_modules(model, lambda module: isinstance(module, ConvNorm), lambda module: module.fuse())  # type: ignore[operator]


def insert_quantized_layers(model: EdgeSam, quantization: dict[str, dict[str, Any]]) -> dict[str, QuantizedLayer]:
    """Replace each named float layer by its quantized form, weights yet to be set; returns what was put where.

    Raises:
        QuantizationError: a name that is no quantizable layer of the model.
    """
    layers = {name: module for name, module in model.named_modules() if quantizable(module)}
    for name in quantization:
        if name not in layers:
            raise QuantizationError(f"{name} is not a layer of this model that can be quantized.")
    plans = {id(layers[name]): LayerQuantization.from_dict(entry) for name, entry in quantization.items()}

    def make(module: nn.Module) -> nn.Module:
        return _FORMS[type(module)](module, plans[id(module)])  # type: ignore[arg-type, call-arg]

    replaced = swap_modules(model, lambda module: id(module) in plans, make)
    return cast(dict[str, QuantizedLayer], replaced)


def set_dialect(model: nn.Module, dialect: Dialect) -> None:
    """Switch every activation grid of a quantized model to a dialect."""
    for module in model.modules():
        if isinstance(module, OnGrid):
            module.set_dialect(dialect)
