"""sam_edge.export.clamps: a rounding less, and the same integers behind the clamp."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from sam_edge.export.clamps import fold_clamps

SIX = 6 / 255


def quantized_convolutions(scale: float, zero: int = 0, clamp: tuple[float, float] = (0.0, 6.0)) -> onnx.ModelProto:
    """Two convolutions as they are exported, a clamp between them; `scale` and `zero` are of the second one's input."""
    rng = np.random.default_rng(0)
    values = {
        "in_scale": np.float32(0.02),
        "in_zero": np.uint8(128),
        "out_scale": np.float32(0.1),
        "out_zero": np.uint8(120),
        "next_scale": np.float32(scale),
        "next_zero": np.uint8(zero),
        "end_scale": np.float32(0.2),
        "end_zero": np.uint8(120),
        "least": np.float32(clamp[0]),
        "most": np.float32(clamp[1]),
        "w_scale": np.float32(0.02),
        "w_zero": np.int8(0),
        "w1": rng.integers(-127, 128, (8, 3, 3, 3), np.int8),
        "w2": rng.integers(-127, 128, (4, 8, 1, 1), np.int8),
    }
    nodes = []

    def add(operator: str, inputs: str, output: str) -> None:
        nodes.append(helper.make_node(operator, inputs.split(), [output], name=output))

    def rounded(value: str, grid: str, output: str) -> None:
        add("QuantizeLinear", f"{value} {grid}_scale {grid}_zero", f"{output}_q")
        add("DequantizeLinear", f"{output}_q {grid}_scale {grid}_zero", output)

    rounded("x", "in", "a")
    add("DequantizeLinear", "w1 w_scale w_zero", "first_weight")
    add("Conv", "a first_weight", "first")
    rounded("first", "out", "b")
    add("Clip", "b least most", "clamped")
    rounded("clamped", "next", "c")
    add("DequantizeLinear", "w2 w_scale w_zero", "second_weight")
    add("Conv", "c second_weight", "second")
    rounded("second", "end", "y")
    given, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "h", "w"])]
        for name, channels in (("x", 3), ("y", 4))
    )
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "convolutions", given, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def folded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    read = ir.from_proto(model)
    taken = fold_clamps(read.graph)
    return ir.to_proto(read), taken


def session(model: onnx.ModelProto, file: str = "") -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.optimized_model_filepath = file
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_what_is_folded_is_computed_in_integers_and_rounded_once(tmp_path):
    model = quantized_convolutions(SIX)
    less, taken = folded(model)
    assert taken == 1
    pixels = np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)
    (whole,) = session(model).run(None, {"x": pixels})
    (found,) = session(less, str(tmp_path / "run.onnx")).run(None, {"x": pixels})
    # the values before the clamp go through zero and beyond six, so that both its ends matter
    assert np.abs(found - whole).mean() < 0.1 * whole.std()
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert [kind for kind in kinds if kind != "Transpose"] == [
        "QuantizeLinear",
        "QLinearConv",
        "QLinearConv",
        "DequantizeLinear",
    ]
    # of exact integers, in NumPy: one rounding behind the clamp
    names = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    codes = np.clip(np.rint(pixels / 0.02) + 128, 0, 255) - 128
    windows = np.lib.stride_tricks.sliding_window_view(codes, (3, 3), (2, 3))
    first = np.einsum("bchwij,ocij->bohw", windows, names["w1"].astype(np.int64)) * 0.02 * 0.02
    codes = np.clip(np.rint(np.clip(first, 0, 6) / SIX), 0, 255)
    second = np.einsum("bchw,oc->bohw", codes, names["w2"][:, :, 0, 0].astype(np.int64)) * SIX * 0.02
    wanted = (np.clip(np.rint(second / 0.2) + 120, 0, 255) - 120) * 0.2
    assert np.abs(found - wanted).max() <= 0.2 + 1e-5
    assert (np.abs(found - wanted) < 1e-4).mean() > 0.98


@pytest.mark.parametrize(
    ("scale", "zero", "clamp"),
    [(6.1 / 255, 0, (0.0, 6.0)), (SIX, 10, (0.0, 6.0)), (SIX, 0, (0.5, 6.0))],
    ids=["reaches further", "reaches below", "ends above zero"],
)
def test_a_clamp_that_the_rounding_does_not_imply_stays_as_it_was(scale, zero, clamp):
    assert folded(quantized_convolutions(scale, zero, clamp))[1] == 0


def test_what_something_else_reads_stays_as_it_was():
    model = quantized_convolutions(SIX)
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    assert folded(model)[1] == 0
