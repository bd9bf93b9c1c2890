"""sam_edge.export.unsigned: notes by which int8 grids are read as uint8 grids of the same values."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from sam_edge.errors import ExportError
from sam_edge.export.unsigned import note_signs, probe
from sam_edge.runtimes.clipping import PROBE, without_sign
from tests.grids import grids


def write(nodes, inputs, outputs, constants, path: Path) -> Path:
    """An ONNX file of float inputs and outputs."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in named.items()]
        for named in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "products", *values, initializers)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def constants() -> dict[str, np.ndarray]:
    """Grids of x (uint8), of y (int8) and of weights per channel."""
    weight = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    # sums of two products that do not fit into 16 bits
    weight[:, 0] = 127
    return {
        "weight": weight,
        "weight_scale": np.linspace(0.01, 0.02, 32, dtype=np.float32),
        "weight_zero": np.zeros(32, np.int8),
        "x_scale": np.float32(0.1),
        "x_zero": np.uint8(0),
        "y_scale": np.float32(0.05),
        "y_zero": np.int8(3),
    }


@pytest.fixture
def file(constants, tmp_path) -> Path:
    """(x on a uint8 grid) W (y on an int8 grid): a product with weights per channel, and one of two activations."""
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
    inputs, outputs = {"x": (16, 64), "y": (32, 64)}, {"inner": (16, 32), "outer": (16, 32)}
    return write(nodes, inputs, outputs, constants, tmp_path / "products.onnx")


@pytest.fixture
def given() -> dict[str, np.ndarray]:
    """x and y that reach the ends of their grids."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 26, (16, 64)).astype(np.float32), rng.uniform(-7, 7, (32, 64)).astype(np.float32)
    x[0] = 25.5
    return {"x": x, "y": y}


@pytest.fixture
def on_grids(given) -> tuple[np.ndarray, np.ndarray]:
    """What their grids make of x and y."""
    x = np.clip(np.rint(given["x"] / np.float32(0.1)), 0, 255) * 0.1
    y = (np.clip(np.rint(given["y"] / np.float32(0.05)) + 3, -128, 127) - 3) * 0.05
    return x, y


def test_the_same_values_without_int8_and_right_on_any_cpu(file, constants, given, on_grids):
    wanted = grids(onnx.load(file))
    graph = without_sign(file, note_signs(file))
    assert grids(onnx.load_from_string(graph)) == wanted
    assert not [t.name for t in onnx.load_from_string(graph).graph.initializer if t.data_type == TensorProto.INT8]
    x, y = on_grids
    inner, outer = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, given)
    weight = constants["weight"].astype(np.float64) * constants["weight_scale"]
    np.testing.assert_allclose(inner, x @ weight, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(outer, x @ y.T, rtol=1e-5, atol=1e-3)


def test_a_loop_s_body_is_read_so_too(constants, given, on_grids, tmp_path):
    """Rows of x are quantized by a loop's body, which is given y's integers from outside."""
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, (64,))
    kept = helper.make_tensor_value_info("kept", TensorProto.INT8, (64, 32))
    still = helper.make_tensor_value_info("still", TensorProto.INT8, (64, 32))
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, (32,))
    body = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["row", "x_scale", "x_zero"], ["row_q"]),
            helper.make_node("DequantizeLinear", ["row_q", "x_scale", "x_zero"], ["row_d"]),
            helper.make_node("DequantizeLinear", ["kept", "y_scale", "y_zero"], ["kept_d"]),
            helper.make_node("MatMul", ["row_d", "kept_d"], ["product"]),
            helper.make_node("Identity", ["kept"], ["still"]),
        ],
        "rows",
        [kept, row],
        [still, product],
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["y_q"]),
        helper.make_node("Transpose", ["y_q"], ["y_t"], perm=[1, 0]),
        helper.make_node("Scan", ["y_t", "x"], ["last", "outer"], body=body, num_scan_inputs=1),
    ]
    known = {name: value for name, value in constants.items() if not name.startswith("weight")}
    file = write(nodes, {"x": (16, 64), "y": (32, 64)}, {"outer": (16, 32)}, known, tmp_path / "loop.onnx")
    wanted = grids(onnx.load(file))
    graph = without_sign(file, note_signs(file))
    assert grids(onnx.load_from_string(graph)) == wanted
    (scan,) = (node for node in onnx.load_from_string(graph).graph.node if node.op_type == "Scan")
    inside = next(attribute.g for attribute in scan.attribute if attribute.name == "body")
    assert inside.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    (outer,) = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, given)
    x, y = on_grids
    np.testing.assert_allclose(outer, x @ y.T, rtol=1e-5, atol=1e-3)


def test_reading_twice_gives_the_file_back(file, tmp_path):
    places = note_signs(file)
    once = tmp_path / "once.onnx"
    once.write_bytes(without_sign(file, places))
    assert once.read_bytes() != file.read_bytes()
    assert without_sign(once, places) == file.read_bytes()


def test_a_graph_that_changes_by_more_than_signs_is_refused(file):
    """Integers that are written one by one, not as bytes, have another length as uint8."""
    model = onnx.load(file)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "weight")
    values = numpy_helper.to_array(weight).ravel().astype(int).tolist()
    weight.ClearField("raw_data")
    weight.int32_data.extend(values)
    onnx.save(model, file)
    with pytest.raises(ExportError, match=r"products\.onnx has another length without signs"):
        note_signs(file)


def test_the_packaged_probe_is_the_one_written_here():
    assert PROBE.read_bytes() == probe()
