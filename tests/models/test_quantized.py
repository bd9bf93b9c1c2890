"""sam_edge.models.quantized: integers that are ONNX's integers, and layers that are their integer arithmetic."""

import itertools

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file
from torch import nn

from sam_edge.errors import QuantizationError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.quantized import (
    Grid,
    LayerQuantization,
    OnGrid,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedPatches,
    QuantizedUpscale,
    TwinGrid,
    dequantize,
    form,
    insert_quantized_layers,
    prepare_for_quantization,
    quantizable,
    quantize,
    rounds_output,
    set_dialect,
    set_twin,
)
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.quantize.scales import quantize_weight
from sam_edge.segment.prompts import Prompts

DIALECTS = ("cpu", "tensorrt")
RANGES = [(-1.0, 1.0), (-0.3, 2.7), (-5.0, 0.01), (0.0, 6.0), (0.5, 4.0), (-3.0, -1.0), (0.0, 0.0), (-1e-4, 900.0)]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Seeded normal values."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def onnx_runtime(op: str, inputs: dict[str, np.ndarray], kind: int, **attributes) -> np.ndarray:
    """One operator in ONNX Runtime, `kind` the type of its output."""
    types = {
        np.dtype(t): v for t, v in [("f4", TensorProto.FLOAT), ("i1", TensorProto.INT8), ("u1", TensorProto.UINT8)]
    }
    given = [helper.make_tensor_value_info(name, types[a.dtype], a.shape) for name, a in inputs.items()]
    shape = next(iter(inputs.values())).shape
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    graph = helper.make_graph([node], "one", given, [helper.make_tensor_value_info("y", kind, shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


# --- The two operators


@pytest.mark.parametrize("zero_point", [np.uint8(0), np.uint8(131), np.uint8(255), np.int8(0), np.int8(-17)], ids=repr)
@pytest.mark.parametrize("scale", [0.125, 0.0371, 3.2], ids=str)
def test_quantize_is_onnx_s(zero_point, scale):
    # every half and quarter step, far past both ends, so that ties and saturation are among them
    x = np.concatenate([np.arange(-1600, 1600) * scale / 4, np.random.default_rng(0).normal(0, 60 * scale, 500)])
    x = x.astype(np.float32)
    kind = TensorProto.UINT8 if zero_point.dtype == np.uint8 else TensorProto.INT8
    wanted = onnx_runtime("QuantizeLinear", {"x": x, "s": np.array(scale, "f4"), "z": np.array(zero_point)}, kind)
    got = quantize(torch.from_numpy(x), torch.tensor(scale), torch.from_numpy(np.array(zero_point)))
    np.testing.assert_array_equal(got.numpy(), wanted)
    assert got.numpy().dtype == wanted.dtype
    assert got.min() == torch.iinfo(got.dtype).min
    assert got.max() == torch.iinfo(got.dtype).max


@pytest.mark.parametrize("zero_point", [np.uint8(0), np.uint8(131), np.int8(0), np.int8(-17)], ids=repr)
def test_dequantize_is_onnx_s(zero_point):
    limits = np.iinfo(zero_point.dtype)
    q = np.arange(limits.min, limits.max + 1).astype(zero_point.dtype)
    scale = np.array(0.0371, "f4")
    wanted = onnx_runtime("DequantizeLinear", {"q": q, "s": scale, "z": np.array(zero_point)}, TensorProto.FLOAT)
    got = dequantize(torch.from_numpy(q), torch.tensor(0.0371), torch.from_numpy(np.array(zero_point)), 0)
    np.testing.assert_array_equal(got.numpy(), wanted)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_dequantize_per_axis_is_onnx_s(axis):
    rng = np.random.default_rng(1)
    q = rng.integers(-128, 128, (3, 4, 5)).astype(np.int8)
    scale = rng.uniform(0.01, 2, q.shape[axis]).astype("f4")
    zero = np.zeros(q.shape[axis], np.int8)
    wanted = onnx_runtime("DequantizeLinear", {"q": q, "s": scale, "z": zero}, TensorProto.FLOAT, axis=axis)
    got = dequantize(*(torch.from_numpy(value) for value in (q, scale, zero)), axis)
    np.testing.assert_array_equal(got.numpy(), wanted)


# --- Grids


@pytest.mark.parametrize("bits", [8, 6, 2])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_every_grid_holds_zero_exactly(low, high, dialect, bits):
    on_grid = OnGrid(Grid.of_range(low, high, bits))
    on_grid.set_dialect(dialect)
    assert on_grid(torch.zeros(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("bits", [8, 6, 3])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_round_trip_error_is_at_most_half_a_step(low, high, dialect, bits):
    grid = Grid.of_range(low, high, bits)
    on_grid = OnGrid(grid)
    on_grid.set_dialect(dialect)
    x = torch.linspace(min(low, 0), max(high, 0), 4001)
    step = on_grid.scale.item()
    if dialect == "cpu":
        assert step == pytest.approx((max(high, 0) - min(low, 0)) / (2**bits - 1), rel=1e-6, abs=1e-12)
    else:
        # symmetric about the larger side; rounding the zero point may have moved that by half a step
        peak = max(-min(low, 0), max(high, 0))
        assert step == pytest.approx(peak / (2 ** (bits - 1) - 1), abs=0.5 * grid.scale + 1e-12)
    # float32 itself is uncertain by 2^-24 of a value, a few times
    slack = 4e-7 * x.abs().max().item() + 1e-15
    assert (on_grid(x) - x).abs().max().item() <= step / 2 + slack


@pytest.mark.parametrize("dialect", DIALECTS)
def test_values_outside_the_range_go_to_its_ends(dialect):
    on_grid = OnGrid(Grid.of_range(-1.0, 3.0))
    on_grid.set_dialect(dialect)
    ends = on_grid(torch.tensor([-1e6, 1e6]))
    low, high = (-1, 3) if dialect == "cpu" else (-3, 3)
    step = on_grid.scale.item()
    # int8 reaches one step further down than up
    assert ends[0].item() == pytest.approx(low, abs=1.01 * step)
    assert ends[1].item() == pytest.approx(high, abs=0.51 * step)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_six_bits_clip_early_and_take_64_values(dialect):
    on_grid = OnGrid(Grid.of_range(-1.0, 1.0, bits=6))
    on_grid.set_dialect(dialect)
    values = on_grid(torch.linspace(-10, 10, 20001)).unique()
    assert len(values) == 64
    # the container would hold four times as much
    assert values.abs().max() <= 1.05
    integers = quantize(values, on_grid.scale, on_grid.zero_point)
    limits = (0, 63) if dialect == "cpu" else (-32, 31)
    assert (integers.min().item(), integers.max().item()) == limits


def test_a_grid_on_the_grid_stays():
    on_grid = OnGrid(Grid.of_range(-0.7, 1.9))
    once = on_grid(random(1000))
    assert torch.equal(on_grid(once), once)


def test_the_dialects_have_their_containers():
    on_grid = OnGrid(Grid.of_range(-0.7, 1.9))
    assert on_grid.zero_point.dtype == torch.uint8
    assert on_grid.zero_point > 0
    on_grid.set_dialect("tensorrt")
    assert on_grid.zero_point.dtype == torch.int8
    assert on_grid.zero_point == 0


def test_a_plan_survives_config_json():
    for output, twin in ((None, None), (Grid(0.25, 3, 6), TwinGrid.signed(0.25, 3, 6))):
        plan = LayerQuantization(Grid(0.5, 17, 6), bits=4, axis=1, output=output, twin=twin)
        assert LayerQuantization.from_dict(plan.as_dict()) == plan


# --- Layers as integer arithmetic


def integers_of(x: np.ndarray, on_grid: OnGrid) -> np.ndarray:
    """x as int32 minus the zero point: what an integer kernel multiplies."""
    limits = torch.iinfo(on_grid.zero_point.dtype)
    low, high = limits.min, limits.max
    zero = int(on_grid.zero_point)
    q = np.clip(np.rint(x / np.float32(on_grid.scale)) + zero, low, high)
    return q.astype(np.int32) - zero


def quantized(form, layer: nn.Module, grid: Grid, dialect: str, bits: int = 8, transposed: bool = False):
    """A layer's quantized form with its own weights rounded."""
    form = form(layer, LayerQuantization(grid, bits=bits, axis=int(transposed)))
    weight = layer.weight.detach()
    integers, scale = quantize_weight(weight.transpose(0, 1) if transposed else weight, bits)
    form.set_weight(integers.transpose(0, 1) if transposed else integers, scale)
    set_dialect(form, dialect)
    return form


def seeded(layer: nn.Module) -> nn.Module:
    """A layer with seeded random weights and biases."""
    for number, value in enumerate(layer.parameters()):
        value.data.copy_(random(*value.shape, seed=number, scale=0.4))
    return layer


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_linear_layer_is_integer_arithmetic(dialect, bias):
    layer = quantized(QuantizedLinear, seeded(nn.Linear(37, 11, bias=bias)), Grid.of_range(-1.5, 2.0), dialect)
    x = random(2, 5, 37, seed=9)
    accumulated = integers_of(x.numpy(), layer.input) @ layer.weight.numpy().astype(np.int32).T
    assert accumulated.dtype == np.int32
    wanted = accumulated.astype(np.float64) * float(layer.input.scale) * layer.weight_scale.numpy().astype(np.float64)
    if bias:
        wanted += layer.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "geometry",
    [{"kernel_size": 3, "padding": 1}, {"kernel_size": 4, "stride": 4}, {"kernel_size": 3, "groups": 2, "dilation": 2}],
    ids=["padded", "patches", "groups"],
)
def test_a_convolution_is_integer_arithmetic(dialect, geometry):
    conv = seeded(nn.Conv2d(4, 6, **geometry))
    kind = QuantizedConv2d if rounds_output("neck.2", conv) else QuantizedPatches
    layer = quantized(kind, conv, Grid.of_range(-1.5, 2.0), dialect)
    x = random(2, 4, 9, 8, seed=9)
    pad, stride, dilation, groups = conv.padding[0], conv.stride[0], conv.dilation[0], conv.groups
    # padding is zero, which is the grid's zero point
    q = np.pad(integers_of(x.numpy(), layer.input), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    weight = layer.weight.numpy().astype(np.int32)
    got = layer(x).numpy()
    accumulated = np.zeros(got.shape, np.int32)
    outs, ins = 6 // groups, 4 // groups
    for o, i, ky, kx in itertools.product(range(6), range(ins), range(weight.shape[2]), range(weight.shape[3])):
        channel = q[:, (o // outs) * ins + i, ky * dilation :, kx * dilation :]
        window = channel[:, ::stride, ::stride][:, : got.shape[2], : got.shape[3]]
        accumulated[:, o] += weight[o, i, ky, kx] * window
    scale = float(layer.input.scale) * layer.weight_scale.numpy().astype(np.float64)[:, None, None]
    bias = conv.bias.detach().numpy()[:, None, None]
    # what runtimes compute as a convolution takes its bias into the accumulator
    bias = np.round(bias / scale) * scale if kind is QuantizedConv2d else bias
    np.testing.assert_allclose(got, accumulated * scale + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("kind", ["linear", "upscale"])
def test_a_twin_layer_is_one_accumulator_and_a_shift(dialect, kind):
    linear = seeded(nn.Linear(5, 3) if kind == "linear" else nn.ConvTranspose2d(5, 3, 2, 2))
    twin = TwinGrid.signed(0.05, 3, 8)
    plan = LayerQuantization(Grid.of_range(-0.2, 6.0), twin=twin)
    layer = (QuantizedLinear if kind == "linear" else QuantizedUpscale)(linear, plan)
    weight = linear.weight.detach()
    integers, scale = quantize_weight(weight if kind == "linear" else weight.transpose(0, 1), 8)
    layer.set_weight(integers if kind == "linear" else integers.transpose(0, 1), scale)
    set_dialect(layer, dialect)
    x = nn.functional.gelu(random(2, 5, 4, 4, seed=9, scale=2))
    rows = x.movedim(1, -1).numpy()
    low = np.clip(np.rint(np.minimum(rows, 0) / np.float32(twin.fine)), -128, 0).astype(np.int32)
    high = np.clip(np.rint(np.maximum(rows, 0) / np.float32(twin.scale)), 0, 127).astype(np.int32)
    weights = layer.weight.numpy().astype(np.int32).reshape(3, 5).T if kind == "linear" else layer.weight.numpy()
    weights = weights.astype(np.int32).reshape(5, -1)
    accumulated = low @ weights + ((high @ weights) << twin.shift)
    per_column = scale.numpy().repeat(weights.shape[1] // 3)
    wanted = accumulated * twin.fine * per_column + layer.bias.numpy().repeat(weights.shape[1] // 3)
    got = layer(x.movedim(1, -1)) if kind == "linear" else layer(x)
    if kind == "upscale":
        got = got.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=2e-5)
    given = x.movedim(1, -1) if kind == "linear" else x
    with_twin = layer(given)
    set_twin(layer, False)
    assert not torch.equal(layer(given), with_twin)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_upscaling_is_integer_arithmetic(dialect):
    conv = seeded(nn.ConvTranspose2d(5, 3, 2, 2))
    layer = quantized(QuantizedUpscale, conv, Grid.of_range(-1.5, 2.0), dialect, transposed=True)
    x = random(2, 5, 4, 6, seed=9)
    q, weight = integers_of(x.numpy(), layer.input), layer.weight.numpy().astype(np.int32)
    accumulated = np.zeros((2, 3, 8, 12), np.int32)
    for dy, dx in itertools.product(range(2), range(2)):
        accumulated[:, :, dy::2, dx::2] = np.einsum("bihw,io->bohw", q, weight[:, :, dy, dx])
    scale = float(layer.input.scale) * layer.weight_scale.numpy().astype(np.float64)[:, None, None]
    wanted = accumulated * scale + conv.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(layer(x).numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_an_upscaling_is_the_transposed_convolution_of_its_weights():
    conv = seeded(nn.ConvTranspose2d(5, 3, 2, 2))
    layer = quantized(QuantizedUpscale, conv, Grid.of_range(-4.0, 4.0), "cpu", transposed=True)
    x = random(2, 5, 4, 6, seed=9)
    scale = layer.weight_scale[None, :, None, None]
    assert ((layer.weight * scale - conv.weight).abs() <= scale / 2 + 1e-6).all()
    conv.weight.data.copy_(layer.weight * scale)
    torch.testing.assert_close(layer(x), conv(layer.input(x)).detach(), rtol=1e-5, atol=1e-5)


def test_an_output_grid_is_put_on_what_the_layer_gives():
    conv, grid = seeded(nn.Conv2d(4, 6, 3)), Grid.of_range(-2.0, 1.0)
    plan = LayerQuantization(Grid.of_range(-1.5, 2.0), output=grid)
    with_grid, without = QuantizedConv2d(conv, plan), QuantizedConv2d(conv, LayerQuantization(plan.input))
    for layer in (with_grid, without):
        layer.set_weight(*quantize_weight(conv.weight.detach(), 8))
    x = random(1, 4, 9, 9, seed=9)
    torch.testing.assert_close(with_grid(x), OnGrid(grid)(without(x)), rtol=0, atol=0)
    assert len(with_grid(x).unique()) < 257 < len(without(x).unique())


def test_eight_bits_are_close_to_float_and_four_are_worse():
    linear = seeded(nn.Linear(37, 11))
    x = random(64, 37, seed=9).clamp(-3, 3)
    wanted = linear(x).detach()
    errors = {}
    for bits in (8, 4):
        layer = quantized(QuantizedLinear, linear, Grid.of_range(-3, 3, bits), "cpu", bits)
        errors[bits] = ((layer(x) - wanted).norm() / wanted.norm()).item()
    assert 1e-4 < errors[8] < 0.015 < errors[4] < 0.3


def test_other_transposed_convolutions_are_refused():
    for conv in (
        nn.ConvTranspose2d(4, 4, 3, 2),
        nn.ConvTranspose2d(4, 4, 2, 1),
        nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
    ):
        with pytest.raises(QuantizationError, match="2 x 2 transposed"):
            QuantizedUpscale(conv, LayerQuantization(Grid(1.0, 0)))


# --- Models


@pytest.mark.parametrize("arch", ["vit", "slim_vit", "tiny_vit"])
def test_preparing_keeps_the_function(tiny_config, tiny_vit_config, make_sam, pixels, arch):
    model = make_sam(tiny_vit_config if arch == "tiny_vit" else tiny_config.replace(arch=arch))
    with torch.no_grad():
        wanted = model.encode(pixels)
        prepare_for_quantization(model)
        torch.testing.assert_close(model.encode(pixels), wanted, rtol=1e-4, atol=1e-4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not norms
    assert model.config.arch == ("tiny_vit" if arch == "tiny_vit" else "slim_vit")


def test_a_name_that_is_no_layer_is_refused(tiny_sam):
    entry = LayerQuantization(Grid(1.0, 0)).as_dict()
    for name in ("image_encoder.nothing", "image_encoder.blocks.0.norm1"):
        with pytest.raises(QuantizationError, match="is not a layer of this model"):
            insert_quantized_layers(tiny_sam, {name: entry})


@pytest.mark.parametrize("arch", ["vit", "tiny_vit"])
def test_a_quantized_checkpoint_comes_back_bit_equal_and_is_integer(
    tiny_config, tiny_vit_config, make_sam, photo, pixels, tmp_path, arch
):
    model = make_sam(tiny_vit_config if arch == "tiny_vit" else tiny_config)
    quantize_model(model, [photo], QuantizeOptions(prompts_per_image=2, rows=16))
    folder = save_checkpoint(model, tmp_path / "quantized", half=True)
    loaded = load_checkpoint(folder)
    prompts = Prompts.build(
        torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * 64, torch.ones(2, 3, 2)
    )
    answers = []
    for sam in (model, loaded):
        with torch.no_grad():
            embeddings = sam.encode(pixels)
            answers.append((embeddings, *sam.decoder.decode(embeddings, prompts)))
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=0)
    assert loaded.config == model.config
    stored = load_file(folder / "model.safetensors")
    exponents = {"image_encoder.pos_embed_exponents"} if arch == "vit" else set()
    assert stored.keys() == model.state_dict().keys() | exponents
    for name, entry in model.config.quantization.items():
        assert "heads" in entry or stored[f"{name}.weight"].dtype == torch.int8
    # what stays float: no matrix but positions, embeddings and the prompt encoder
    floats = {name for name, value in stored.items() if value.is_floating_point() and value.ndim > 1 and len(value) > 1}
    allowed = ("prompt_encoder.", "mask_decoder.mask_tokens", "rel_pos", "attention_biases")
    assert not [name for name in floats if not any(word in name for word in allowed)]


def test_what_can_be_quantized_is_what_has_a_form():
    assert quantizable(nn.Linear(2, 2))
    assert quantizable(nn.Conv2d(2, 2, 1))
    assert quantizable(nn.ConvTranspose2d(2, 2, 2, 2))
    # a subclass may compute something else
    assert not quantizable(nn.LazyLinear(2))
    assert not quantizable(nn.LayerNorm(2))


def test_outputs_are_rounded_of_convolutions_that_neither_tile_nor_are_the_neck():
    assert not rounds_output("patch_embed.proj", nn.Conv2d(3, 2, 4, 4))
    assert not rounds_output("image_encoder.neck.2", nn.Conv2d(3, 2, 3, padding=1))
    assert not rounds_output("image_encoder.neck.2", nn.Linear(3, 2))
    for geometry in (
        {"kernel_size": 1},
        {"kernel_size": 4, "stride": 2},
        {"kernel_size": 2, "stride": 2, "padding": 1},
    ):
        assert rounds_output("image_encoder.layers.0.conv", nn.Conv2d(3, 2, **geometry))
    assert rounds_output("image_encoder.neck.2", nn.Conv2d(4, 2, 3, groups=2))
    assert isinstance(form(nn.Conv2d(3, 2, 4, 4), LayerQuantization(Grid(1.0, 0)).as_dict()), QuantizedPatches)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 4, "stride": 4},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "padding": (1, 0)},
    ],
    ids=str,
)
def test_the_products_that_graphs_take_are_the_convolution(dialect, geometry, monkeypatch):
    layer = quantized(QuantizedPatches, seeded(nn.Conv2d(4, 6, **geometry)), Grid.of_range(-1.5, 2.0), dialect)
    x = random(2, 4, 9, 8, seed=9)
    convolved = layer(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(layer(x), convolved, rtol=1e-5, atol=1e-5)
