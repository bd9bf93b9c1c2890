"""Types in a graph: 16 bits but where float32 is asked for, sums in float32, integers next to their products."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from sam_edge.errors import ExportError
from sam_edge.export.ranges import Kept
from sam_edge.export.typed import gelu_by_erf, quantize_to_e4m3, write_types
from sam_edge.export.walk import Walk, value_types
from tests.export.graph_maker import graph

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """The same numbers whichever tests ran before."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def layers() -> onnx.ModelProto:
    """A product, an addition, a Gelu and another product."""
    nodes = [
        ("MatMul", ["pixels", "w0"], ["m0"], {}),
        ("Add", ["m0", "b0"], ["a0"], {}),
        ("Gelu", ["a0"], ["g0"], {}),
        ("MatMul", ["g0", "w1"], ["embeddings"], {}),
    ]
    return graph(
        nodes, {"pixels": [4, 32]}, ["embeddings"], {"w0": normal(32, 32), "b0": normal(32), "w1": normal(32, 16)}
    )


def keep_all(model: onnx.ModelProto) -> dict[str, Kept]:
    return {node.output[0]: Kept(node.name, node.op_type, "asked", True, True) for node in model.graph.node}


def giver(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    (found,) = (node for node in model.graph.node if name in node.output)
    return found


def test_a_graph_of_halves_takes_and_gives_float32() -> None:
    typed, stayed = write_types(layers(), {}, HALF)
    assert stayed == []
    types = value_types(typed)
    assert (types["pixels"], types["a0"], types["g0"], types["embeddings"]) == (FLOAT, HALF, HALF, FLOAT)
    assert {tensor.data_type for tensor in typed.graph.initializer} == {HALF}


def test_products_add_in_float32_of_factors_that_are_halves() -> None:
    typed, _ = write_types(layers(), {}, HALF)
    types = value_types(typed)
    products = [node for node in typed.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2
    for product in products:
        assert types[product.output[0]] == FLOAT
        for name in product.input:
            cast = giver(typed, name)
            assert (cast.op_type, types[name], types[cast.input[0]]) == ("Cast", FLOAT, HALF)


def test_halves_compute_what_halves_do_by_hand() -> None:
    source = layers()
    typed, _ = write_types(source, {}, HALF)
    x = normal(4, 32)
    (got,) = Walk(typed).run({"pixels": x}).values()
    w = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        for tensor in source.graph.initializer
    }
    a = (x.astype(np.float16).astype(np.float32) @ w["w0"]).astype(np.float16) + w["b0"].astype(np.float16)
    (gelu,) = Walk(graph([("Gelu", ["x"], ["y"], {})], {"x": [4, 32]}, ["y"])).run({"x": a.astype(np.float32)}).values()
    wanted = (gelu.astype(np.float16).astype(np.float32) @ w["w1"]).astype(np.float16).astype(np.float32)
    # sums in another order may round to a neighbour
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-3)
    assert np.mean(got == wanted) > 0.9


def test_with_every_node_kept_nothing_changes() -> None:
    source, x = layers(), normal(4, 32)
    typed, _ = write_types(source, keep_all(source), HALF)
    assert Counter(node.op_type for node in typed.graph.node)["Cast"] == 0
    (a,), (b,) = (Walk(model).run({"pixels": x}).values() for model in (source, typed))
    np.testing.assert_array_equal(a, b)


def test_what_is_kept_is_not_rounded_on_the_way_in_nor_out() -> None:
    source = layers()
    kept = {
        "m0": Kept("node_m0", "MatMul", "asked", False, True),
        "a0": Kept("node_a0", "Add", "asked", True, True),
        "g0": Kept("node_g0", "Gelu", "asked", True, False),
    }
    typed, stayed = write_types(source, kept, HALF)
    types = value_types(typed)
    assert [node.node for node in stayed] == ["node_m0", "node_a0", "node_g0"]
    assert types["a0"] == types["g0"] == FLOAT
    # a sum may take halves and give float32
    assert giver(typed, "m0").op_type == "MatMul"
    assert types[giver(typed, giver(typed, "m0").input[0]).input[0]] == HALF
    assert giver(typed, "a0").input[:] == ["m0", "b0"]


def test_a_node_between_two_in_float32_stays_in_it() -> None:
    nodes = [("Exp", ["pixels"], ["a"], {}), ("Neg", ["a"], ["b"], {}), ("Exp", ["b"], ["embeddings"], {})]
    source = graph(nodes, {"pixels": [4]}, ["embeddings"])
    kept = {name: Kept(name, "Exp", "asked", True, True) for name in ("a", "embeddings")}
    typed, _ = write_types(source, kept, HALF)
    assert [node.op_type for node in typed.graph.node] == ["Exp", "Neg", "Exp"]


def quantized() -> onnx.ModelProto:
    """An integer product."""
    nodes = [
        ("QuantizeLinear", ["pixels", "sx", "z"], ["xq"], {}),
        ("DequantizeLinear", ["xq", "sx", "z"], ["x"], {}),
        ("DequantizeLinear", ["wq", "sw", "zw"], ["w"], {"axis": 1}),
        ("MatMul", ["x", "w"], ["m"], {}),
        ("Relu", ["m"], ["embeddings"], {}),
    ]
    weights = {
        "sx": np.float32(0.05),
        "z": np.array(0, np.int8),
        "wq": RNG.integers(-127, 128, (32, 16)).astype(np.int8),
        "sw": np.full(16, 0.01, np.float32),
        "zw": np.zeros(16, np.int8),
    }
    return graph(nodes, {"pixels": [4, 32]}, ["embeddings"], weights)


@pytest.mark.parametrize("kind", [HALF, FLOAT])
def test_integers_reach_their_product_without_a_cast(kind: int) -> None:
    source = quantized()
    kept = {"m": Kept("node_m", "MatMul", "asked", True, True)} if kind == FLOAT else {}
    typed, _ = write_types(source, kept, HALF)
    types, product = value_types(typed), giver(typed, "m")
    assert types["m"] == kind
    for name in product.input:
        assert giver(typed, name).op_type == "DequantizeLinear"
        assert types[giver(typed, name).input[1]] == kind
    x = normal(4, 32)
    (wanted,), (got,) = (Walk(model).run({"pixels": x}).values() for model in (source, typed))
    # a scale that is rounded moves a few activations to the next integer
    assert np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 1e-2


@pytest.mark.parametrize("kind", [HALF, BRAIN])
def test_a_step_of_what_is_always_zero_does_not_become_zero(kind: int) -> None:
    source = quantized()
    (sw,) = (tensor for tensor in source.graph.initializer if tensor.name == "sw")
    steps = numpy_helper.to_array(sw).copy()
    steps[3] = 1e-40 if kind == BRAIN else 1e-12 / 127
    sw.CopyFrom(numpy_helper.from_array(steps, "sw"))
    typed, _ = write_types(source, {}, kind)
    (written,) = (tensor for tensor in typed.graph.initializer if tensor.name.startswith("sw."))
    held = np.asarray(numpy_helper.to_array(written), np.float32)
    assert held[3] > 0
    np.testing.assert_allclose(np.delete(held, 3), 0.01, rtol=2**-8)


def test_parts_pass_from_graph_to_graph_in_their_own_type() -> None:
    first = graph([("Relu", ["embeddings"], ["part"], {})], {"embeddings": [4]}, ["part"])
    typed, _ = write_types(first, {}, HALF)
    assert value_types(typed)["part"] == HALF
    then = graph([("Neg", ["part"], ["iou"], {})], {"part": [4]}, ["iou"])
    typed, _ = write_types(then, {}, HALF, {"part": HALF})
    assert (value_types(typed)["part"], value_types(typed)["iou"]) == (HALF, FLOAT)
    assert [node.op_type for node in typed.graph.node] == ["Neg", "Cast"]


def test_a_weight_that_is_an_output_stays_one() -> None:
    source = graph(
        [("Relu", ["embeddings"], ["part"], {})], {"embeddings": [4]}, ["part", "fixed"], {"fixed": normal(4)}
    )
    typed, _ = write_types(source, {}, HALF)
    assert value_types(typed)["fixed"] == FLOAT
    assert Walk(typed).run({"embeddings": normal(4)})["fixed"].shape == (4,)


def test_operators_that_onnx_has_not_in_a_type_keep_float32() -> None:
    source = graph([("Sin", ["pixels"], ["embeddings"], {})], {"pixels": [4]}, ["embeddings"])
    assert write_types(source, {}, HALF)[1] == []
    (stayed,) = write_types(source, {}, BRAIN)[1]
    assert (stayed.node, stayed.reason) == ("node_embeddings", "ONNX has no bf16 of it")


def test_fp8_products_are_those_of_e4m3_factors() -> None:
    source, x = layers(), normal(4, 32)
    peaks = {"pixels": float(np.abs(x).max()), "g0": 30.0}
    model, names = quantize_to_e4m3(source, peaks)
    onnx.checker.check_model(model)
    assert list(names) == ["node_m0", "node_embeddings"]
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert stored["w0.e4m3"].data_type == TensorProto.FLOAT8E4M3FN
    assert "w0" not in stored
    weight = numpy_helper.to_array(next(t for t in source.graph.initializer if t.name == "w0"))
    back = numpy_helper.to_array(stored["w0.e4m3"]).astype(np.float32) * numpy_helper.to_array(stored["w0.e4m3_scale"])
    # three bits of fraction: half a step is a sixteenth
    assert np.abs(back - weight).max() <= np.abs(weight).max() / 16
    (wanted,), (got,) = (Walk(one).run({"pixels": x}).values() for one in (source, model))
    assert 1e-4 < np.linalg.norm(got - wanted) / np.linalg.norm(wanted) < 0.06


def test_fp8_without_a_linear_layer_is_refused() -> None:
    source = graph([("Relu", ["pixels"], ["embeddings"], {})], {"pixels": [4]}, ["embeddings"])
    with pytest.raises(ExportError, match="no linear layer here can compute in fp8"):
        quantize_to_e4m3(source, {"pixels": 1.0})


def test_gelu_by_erf_is_gelu() -> None:
    source, x = layers(), normal(4, 32)
    plain = gelu_by_erf(source)
    onnx.checker.check_model(plain)
    assert Counter(node.op_type for node in plain.graph.node) == {"MatMul": 2, "Add": 2, "Mul": 3, "Erf": 1}
    (wanted,), (got,) = (Walk(model).run({"pixels": x}).values() for model in (source, plain))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
