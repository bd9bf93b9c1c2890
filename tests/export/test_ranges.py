"""What keeps float32 is read from values: overflow, and rounding that what follows would amplify."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sam_edge.export import ranges
from sam_edge.export.ranges import UNIT, Kept, Readings, change, keep, sensitivities
from sam_edge.export.walk import Walk
from tests.export.graph_maker import graph

HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16
RNG = np.random.default_rng(0)


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def read(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], kind: int = HALF
) -> tuple[Readings, dict[str, float]]:
    readings = Readings(kind)
    readings.read(Walk(model), inputs)
    return readings, sensitivities(model, readings)


def kept(model: onnx.ModelProto, kind: int = HALF, units: float = 16, **inputs: np.ndarray) -> dict[str, Kept]:
    readings, felt = read(model, inputs, kind)
    return keep(model, readings, felt, units * UNIT[kind])


def attention(common: float) -> dict[str, Kept]:
    """Scores that differ by about one, around `common`, from their product to what softmax gives."""
    nodes = [
        ("MatMul", ["q", "k"], ["product"], {}),
        ("Add", ["product", "common"], ["scores"], {}),
        ("Reshape", ["scores", "shape"], ["flat"], {}),
        ("Softmax", ["flat"], ["weights"], {}),
        ("MatMul", ["weights", "v"], ["y"], {}),
    ]
    weights = {"shape": np.array([32, 64]), "common": np.float32(common)}
    model = graph(nodes, {"q": [32, 16], "k": [16, 64], "v": [64, 16]}, ["y"], weights)
    return kept(model, q=normal(32, 16, scale=0.25), k=normal(16, 64), v=normal(64, 16))


def test_scores_of_a_softmax_keep_float32_where_they_are_large_and_only_there() -> None:
    assert attention(0.0) == {}
    large = attention(300.0)
    assert large.keys() == {"scores", "flat", "weights"}
    # a reshaping on the way passes float32 on, and what softmax gives is small again
    assert (large["flat"].takes, large["flat"].gives) == (True, True)
    assert (large["weights"].takes, large["weights"].gives) == (True, False)
    assert "rounding scores moves the end by" in large["scores"].reason


def test_squares_that_would_overflow_keep_float32_with_the_reason() -> None:
    nodes = [
        ("Mul", ["x", "x"], ["squares"], {}),
        ("ReduceMean", ["squares"], ["mean"], {}),
        ("Sqrt", ["mean"], ["root"], {}),
        ("Div", ["x", "root"], ["y"], {}),
    ]
    model = graph(nodes, {"x": [8, 64]}, ["y"])
    assert kept(model, x=normal(8, 64)) == {}
    found = kept(model, x=normal(8, 64, scale=300))
    assert {"squares", "mean", "root"} <= found.keys()
    assert found["squares"].reason.startswith("squares reaches ")
    assert found["squares"].reason.endswith("halves end at 65504")
    # bfloat16 reaches as far as float32
    assert kept(model, BRAIN, x=normal(8, 64, scale=300)) == {}


def test_phases_of_many_turns_keep_float32_up_to_where_they_come_from() -> None:
    nodes = [("Mul", ["x", "turns"], ["phase"], {}), ("Sin", ["phase"], ["y"], {})]
    weights = {"turns": np.float32(200)}
    model = graph(nodes, {"x": [500]}, ["y"], weights)
    few, many = (kept(model, x=normal(500, scale=scale)) for scale in (0.005, 1.0))
    assert few == {}
    assert many["y"].takes
    assert many["phase"].takes


def test_a_difference_of_almost_equal_numbers_keeps_float32() -> None:
    model = graph([("Sub", ["a", "b"], ["y"], {})], {"a": [500], "b": [500]}, ["y"])
    a = normal(500)
    assert kept(model, a=a, b=normal(500)) == {}
    assert kept(model, a=a, b=a + normal(500, scale=1e-3))["y"].takes


def test_a_comparison_keeps_float32_where_rounding_turns_it() -> None:
    nodes = [
        ("Greater", ["x", "edge"], ["above"], {}),
        ("Cast", ["above"], ["y"], {"to": TensorProto.FLOAT}),
    ]
    model = graph(nodes, {"x": [2]}, ["y"], {"edge": np.float32(1.0)})
    assert kept(model, x=np.float32([0.5, 2.0])) == {}
    assert kept(model, x=np.float32([1.0001, 2.0]))["above"].takes


def test_sensitivity_is_the_condition_of_what_follows() -> None:
    # of a sine's argument x: |x cos x| / |sin x|, in norms
    x = normal(20000, scale=20)
    _, felt = read(graph([("Sin", ["x"], ["y"], {})], {"x": [20000]}, ["y"]), {"x": x})
    wanted = np.linalg.norm(x * np.cos(x)) / np.linalg.norm(np.sin(x))
    assert felt["x"] == pytest.approx(wanted, rel=0.2)
    # and of two ways to the end, the squares add
    both = [("Sin", ["x"], ["a"], {}), ("Sin", ["x"], ["b"], {})]
    assert read(graph(both, {"x": [20000]}, ["a", "b"]), {"x": x})[1]["x"] == pytest.approx(
        felt["x"] * 2**0.5, rel=1e-3
    )


def test_integers_pass_sensitivity_on_as_if_they_were_not_there() -> None:
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["back"], {}),
        ("Relu", ["back"], ["y"], {}),
    ]
    weights = {"s": np.float32(0.05), "z": np.array(0, np.int8)}
    model = graph(nodes, {"x": [500]}, ["y"], weights)
    _, felt = read(model, {"x": normal(500)})
    assert 0.5 < felt["x"] < 2
    assert kept(model, x=normal(500)) == {}


def test_masked_scores_are_not_errors() -> None:
    masked = np.float32([1, -np.inf, 2])
    assert change([(masked, masked)]) == 0
    assert change([(masked, np.float32([1, -np.inf, 2.5]))]) == pytest.approx(0.5 / 5**0.5)
    assert change([(masked, np.float32([np.inf, -np.inf, 2]))]) == np.inf
    assert change([(np.array([1, 2]), np.array([1, 3]))]) == np.inf
    # parts are one
    assert change([(np.float32([3]), np.float32([3])), (np.float32([4]), np.float32([5]))]) == pytest.approx(1 / 5)


@pytest.mark.parametrize("operator", ["MatMul", "Add", "Softmax"])
def test_attention_read_head_by_head_reads_the_same(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a"] if operator == "Softmax" else ["a", "b"]
    model = graph([(operator, names, ["y"], {})], {name: [2, 3, 8, 8] for name in names}, ["y"])
    inputs = {name: normal(2, 3, 8, 8, scale=3) for name in names}
    whole, _ = read(model, inputs)
    monkeypatch.setattr(ranges, "LARGEST_WHOLE", 10)
    by_head, _ = read(model, inputs)
    assert whole.errors.keys() == by_head.errors.keys()
    for before, after in ((whole.errors, by_head.errors), (whole.effects, by_head.effects)):
        assert {key: pytest.approx(value, rel=1e-4) for key, value in before.items()} == dict(after)
