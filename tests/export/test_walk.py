"""A walk rounds every result to its type and adds in float32: the checker of typed graphs is itself checked."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from sam_edge.errors import ExportError
from sam_edge.export.parity import answers, compare
from sam_edge.export.walk import Walk, WalkRuntime, rounded
from tests.export.graph_maker import graph

HALF, BRAIN, E4M3 = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN
RNG = np.random.default_rng(0)


def walked(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    """The first output."""
    return next(iter(Walk(model).run(inputs).values()))


def test_300_times_300_overflows_a_half() -> None:
    squared = graph([("Mul", ["x", "x"], ["y"], {}), ("Sqrt", ["y"], ["z"], {})], {"x": [2]}, ["z"], kind=HALF)
    assert walked(squared, x=np.float32([300, 255])).tolist() == [np.inf, 255]


def test_the_same_survives_where_the_graph_says_float32() -> None:
    nodes = [
        ("Cast", ["x"], ["wide"], {"to": TensorProto.FLOAT}),
        ("Mul", ["wide", "wide"], ["y"], {}),
        ("Sqrt", ["y"], ["z"], {}),
    ]
    squared = graph(nodes, {"x": [1]}, ["z"], kind=HALF, kinds={"z": TensorProto.FLOAT})
    assert walked(squared, x=np.float32([300])).tolist() == [300]


def test_products_are_summed_in_float32_and_rounded_once() -> None:
    # halves stop counting at 2048; 4097 lies between two of them
    ones = np.ones((4097, 1), np.float16)
    product = graph([("MatMul", ["x", "w"], ["y"], {})], {"x": [1, 4097]}, ["y"], {"w": ones}, HALF)
    assert walked(product, x=np.ones((1, 4097), np.float32)).item() == 4096
    assert walked(product, x=np.full((1, 4097), 100, np.float32)).item() == np.inf


def test_additions_are_halves_as_torch_adds_them() -> None:
    a, b = (RNG.standard_normal(1000).astype(np.float16) for _ in range(2))
    added = graph([("Add", ["a", "b"], ["y"], {})], {"a": [1000], "b": [1000]}, ["y"], kind=HALF)
    wanted = (torch.from_numpy(a) + torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(walked(added, a=a, b=b), wanted.astype(np.float32))


@pytest.mark.parametrize("kind", [HALF, BRAIN, E4M3])
def test_rounding_takes_the_nearest_value_of_a_type(kind: int) -> None:
    values = RNG.standard_normal(4000).astype(np.float32) * np.float32(2.0) ** RNG.integers(-12, 6, 4000)
    wanted = values.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float32)
    np.testing.assert_array_equal(rounded(values, kind), wanted)
    np.testing.assert_array_equal(rounded(values.reshape(40, 100), kind, at_once=7), wanted.reshape(40, 100))
    np.testing.assert_array_equal(rounded(values.reshape(40, 100).T, kind), wanted.reshape(40, 100).T)


def test_e4m3_saturates_and_steps_as_its_three_bits_do() -> None:
    assert rounded(np.float32([449, 1e9, -1e9, 17, 19]), E4M3).tolist() == [448, 448, -448, 16, 20]


def test_quantizing_in_halves_uses_the_rounded_scale() -> None:
    weights = {"s": np.array(0.1, np.float16), "z": np.array(0, np.int8)}
    nodes = [("QuantizeLinear", ["x", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["y"], {})]
    model = graph(nodes, {"x": [3]}, ["y"], weights, HALF)
    scale = float(np.float16(0.1))
    wanted = np.float16([round(0.26 / scale) * scale, -128 * scale, 127 * scale])
    np.testing.assert_array_equal(walked(model, x=np.float32([0.26, -99, 99])), wanted.astype(np.float32))


def test_fp8_quantizes_along_its_axis() -> None:
    weights = {"s": np.float32([1, 2]), "z": np.zeros(2, helper.tensor_dtype_to_np_dtype(E4M3))}
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["q"], {"axis": 0}),
        ("DequantizeLinear", ["q", "s", "z"], ["y"], {"axis": 0}),
    ]
    model = graph(nodes, {"x": [2, 2]}, ["y"], weights)
    assert walked(model, x=np.float32([[17, 900], [22.5, 900]])).tolist() == [[16, 448], [22, 896]]


def test_float32_graphs_are_walked_as_sessions_run_them(fp32_small, photo) -> None:
    runtime = fp32_small.runtime
    files = {graph: runtime.folder.graph_file(graph) for graph in runtime.folder.graphs}
    wanted, got = (answers(each, [photo], split=True) for each in (runtime, WalkRuntime(runtime.folder, files)))
    parity = compare(wanted, got)
    assert parity.mask_iou > 0.9999
    assert max(parity.largest_embedding_error, parity.largest_logit_error, parity.largest_split_error) < 1e-4


def test_what_cannot_be_walked_is_refused_by_name() -> None:
    other = helper.make_node("Gelu", ["x"], ["y"], "mine", domain="com.example")
    made = helper.make_graph(
        [other],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    with pytest.raises(ExportError, match=r"node mine is of com\.example's own operators"):
        walked(helper.make_model(made, opset_imports=domains, ir_version=10), x=np.zeros(1, np.float32))
