"""sam_edge.models.clamps: one rounding behind a ReLU6, in torch as in the graph."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sam_edge.models.clamps import link_clamps
from sam_edge.models.grids import Grid
from sam_edge.models.quantized import LayerQuantization, QuantizedConv2d, set_dialect

SIX = Grid(6 / 255, 0)


def convolution(inputs: int, outputs: int, kernel: int, grid: Grid, seed: int) -> QuantizedConv2d:
    """Random integer weights, on this grid for the input, and a coarse one for the output."""
    plan = LayerQuantization(input=grid, bits=8, axis=0, output=Grid(0.11, 120))
    generator = torch.Generator().manual_seed(seed)
    plain = nn.Conv2d(inputs, outputs, kernel)
    nn.init.normal_(plain.bias, generator=generator)
    layer = QuantizedConv2d(plain, plan)
    weights = torch.randint(-127, 128, layer.weight.shape, generator=generator)
    layer.set_weight(weights.to(torch.int8), torch.full((outputs,), 0.02))
    return layer.eval()


def encoder(grid: Grid = SIX) -> nn.Sequential:
    """Two convolutions, a ReLU6 between them; `grid` is of what the second takes."""
    first, second = convolution(3, 8, 3, Grid(0.02, 128), 0), convolution(8, 4, 1, grid, 1)
    return nn.Sequential(first, nn.ReLU6(inplace=True), second)


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_the_convolution_before_a_clamp_is_rounded_by_the_layer_behind():
    linked = encoder()
    assert link_clamps(linked, 8) == 1
    first, _, second = linked
    exact = nn.functional.conv2d(first.input(pixels()), first.dequantized(), first.counted_bias())
    assert torch.equal(first(pixels()), exact)
    # both ends of the clamp matter
    assert exact.min() < 0
    assert exact.max() > 6
    wanted = second(exact.clamp(0, 6))
    assert torch.equal(linked(pixels()), wanted)
    # a rounding less is closer to what is rounded nowhere
    float_form = nn.functional.conv2d(exact.clamp(0, 6), second.dequantized(), second.bias)
    assert (wanted - float_form).abs().mean() < (encoder()(pixels()) - float_form).abs().mean()


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model[2], "use_grids", False),
        lambda model: set_dialect(model, "tensorrt"),
    ],
    ids=["float behind", "symmetric grids"],
)
def test_it_rounds_by_itself_where_the_layer_behind_does_not_do_it(change):
    model, alone = encoder(), encoder()
    link_clamps(model, 8)
    for each in (model, alone):
        change(each)
    assert torch.equal(model(pixels()), alone(pixels()))


@pytest.mark.parametrize("grid", [Grid(6.1 / 255, 0), Grid(6 / 255, 3)], ids=["reaches further", "reaches below"])
def test_a_grid_that_is_not_the_clamps_is_no_stand_in(grid):
    assert link_clamps(encoder(grid), 8) == 0


def test_a_result_that_two_layers_take_is_rounded_as_before():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.more = encoder(), convolution(8, 4, 1, Grid(5 / 255, 0), 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, clamp, second = self.stem
            shared = clamp(first(x))
            return second(shared) + self.more(shared)

    model = Branches().eval()
    assert link_clamps(model, 8) == 0
    assert not model.stem[0].rounded_by


def test_a_copy_is_rounded_by_its_own_layers():
    model = encoder()
    link_clamps(model, 8)
    twin = copy.deepcopy(model)
    assert twin[0].rounded_by == (twin[2],)
    assert not [name for name in model.state_dict() if "rounded_by" in name]


@torch.no_grad()
def test_runtimes_compute_it_in_integers_and_give_what_torch_gives(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    from sam_edge.export.graphs import GraphSpec
    from sam_edge.export.translate import translate

    model = encoder()
    link_clamps(model, 8)
    spec = GraphSpec("graph", model, (pixels(),), ("x",), ("y",), {"x": {0: "batch"}})
    translate(spec)[0].save(tmp_path / "graph.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    session = ort.InferenceSession(tmp_path / "graph.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert [kind for kind in kinds if kind != "Transpose"] == [
        "QuantizeLinear",
        "QLinearConv",
        "QLinearConv",
        "DequantizeLinear",
    ]
    (found,) = session.run(None, {"x": pixels().numpy()})
    off = np.abs(found - model(pixels()).numpy())
    # where a value lies between two steps, the two may take either
    assert (off > 1e-5).mean() < 0.01
    assert off.max() <= 2 * 0.11 + 1e-5
