"""sam_edge.export.unsigned: uint8 grids of the same values, for CPUs that clip products of uint8 and int8."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from sam_edge.export.unsigned import unsigned_graph


@pytest.fixture
def file(tmp_path):
    """(x on a uint8 grid) W (y on an int8 grid): a product with weights per channel, and one of two activations."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 32)).astype(np.int8)
    # sums of two products that do not fit into 16 bits
    weight[:, 0] = 127
    constants = {
        "weight": weight,
        "weight_scale": np.linspace(0.01, 0.02, 32, dtype=np.float32),
        "weight_zero": np.zeros(32, np.int8),
        "x_scale": np.float32(0.1),
        "x_zero": np.uint8(0),
        "y_scale": np.float32(0.05),
        "y_zero": np.int8(3),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["weight_d"], axis=1),
        helper.make_node("MatMul", ["x_d", "weight_d"], ["inner"]),
        helper.make_node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["y_q"]),
        helper.make_node("Transpose", ["y_q"], ["y_t"], perm=[1, 0]),
        helper.make_node("DequantizeLinear", ["y_t", "y_scale", "y_zero"], ["y_d"]),
        helper.make_node("MatMul", ["x_d", "y_d"], ["outer"]),
    ]
    shapes = {"x": (16, 64), "y": (32, 64), "inner": (16, 32), "outer": (16, 32)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes, "products", [values["x"], values["y"]], [values["inner"], values["outer"]], initializers
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "products.onnx")
    return tmp_path / "products.onnx"


def test_the_same_values_without_int8_and_right_on_any_cpu(file):
    rng = np.random.default_rng(1)
    given = {
        "x": rng.uniform(0, 26, (16, 64)).astype(np.float32),
        "y": rng.uniform(-7, 7, (32, 64)).astype(np.float32),
    }
    given["x"][0] = 25.5
    graph = unsigned_graph(file)
    model, constants = onnx.load_from_string(graph), onnx.load(file).graph.initializer
    weight, scale, *_ = (numpy_helper.to_array(constant).astype(np.float64) for constant in constants)
    x = np.clip(np.rint(given["x"] / np.float32(0.1)), 0, 255) * 0.1
    y = (np.clip(np.rint(given["y"] / np.float32(0.05)) + 3, -128, 127) - 3) * 0.05
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8]
    inner, outer = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, given)
    np.testing.assert_allclose(inner, x @ (weight * scale), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(outer, x @ y.T, rtol=1e-5, atol=1e-3)
