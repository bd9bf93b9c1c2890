"""sam_edge.bench.integers: turns in processes of their own, ratios turn by turn."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from sam_edge.bench.encoder_turn import opened
from sam_edge.bench.integers import (
    Contender,
    Turns,
    as_dict,
    quantize_by_nncf,
    quantize_by_onnxruntime,
    race,
    race_table,
    ratios,
)
from sam_edge.errors import BenchError


def turns(*wall_ms: float) -> Turns:
    return Turns(wall_ms, tuple(2 * time for time in wall_ms), 10**9, 10**6)


class Reader(CalibrationDataReader):
    """Pictures one by one."""

    def __init__(self, pictures):
        self.left = iter(pictures)

    def get_next(self):
        return next(({"pixels": picture} for picture in self.left), None)


@pytest.fixture
def graph(tmp_path):
    """pixels -> a convolution of them."""
    weight = numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32), "weight"
    )
    node = helper.make_node("Conv", ["pixels", "weight"], ["embeddings"], strides=[8, 8])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("pixels", ["batch", 3, 32, 32]), ("embeddings", ["batch", 4, 4, 4]))
    ]
    model = helper.make_model(
        helper.make_graph([node], "encoder", ends[:1], ends[1:], [weight]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    file = tmp_path / "encoder.onnx"
    onnx.save(model, file)
    return file


def test_a_ratio_is_the_median_of_the_turns_own_ratios():
    slow, fast = turns(100, 900, 300), turns(50, 300, 100)
    # a disturbed turn disturbs both: 2, 3, 3 and not 300 by 100
    assert fast.ratio(slow, "wall_ms") == 3
    assert slow.ratio(slow, "cpu_ms") == 1


def test_the_better_of_onnx_runtime_s_own_counts_and_absent_runtimes_do_not():
    found = {"onnxruntime float": turns(200), "onnxruntime int8": turns(100), "onnxruntime static": turns(150)}
    found["onnxruntime dynamic"] = turns(120)
    assert ratios(found) == {"int8_vs_float": 2, "int8_vs_own": 1.2}
    found |= {"openvino float": turns(90), "openvino bf16": turns(45), "openvino int8": turns(60)}
    assert ratios(found)["openvino_int8_vs_bf16"] == 0.75
    assert ratios(found)["openvino_int8_vs_float"] == 1.5
    assert json.loads(json.dumps(as_dict(found)))["ratios"]["wall"]["int8_vs_own"] == 1.2
    assert race_table(found).row_count == 7


def test_onnx_runtime_s_own_quantization_runs_in_turn_with_its_parent(graph, tmp_path):
    pixels = [np.random.default_rng(seed).standard_normal((1, 3, 32, 32), dtype=np.float32) for seed in (1, 2)]
    files = quantize_by_onnxruntime(graph, tmp_path, pixels)
    kinds = [node.op_type for node in onnx.load(files["static"]).graph.node]
    assert "DequantizeLinear" in kinds
    # the ranges are those that its own order of nodes finds
    plain = tmp_path / "plain.onnx"
    quantize_static(tmp_path / "prepared.onnx", plain, Reader(pixels), weight_type=QuantType.QInt8)
    ours, theirs = (
        {v.name: numpy_helper.to_array(v) for v in onnx.load(f).graph.initializer} for f in (files["static"], plain)
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    names = []
    contenders = {f"onnxruntime {name}": Contender("onnxruntime", file) for name, file in files.items()}
    contenders = {"onnxruntime float": Contender("onnxruntime", graph), **contenders}
    found = race(contenders, side=32, threads=1, turns=2, on_turn=lambda done, total, name: names.append(name))
    assert names == [*contenders, *contenders]
    assert set(found) == set(contenders)
    assert all(len(each.wall_ms) == 2 and min(each.wall_ms) > 0 for each in found.values())
    assert found["onnxruntime float"].peak_bytes > 10**7


def test_a_graph_that_does_not_open_is_named(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BenchError, match="mine does not run"):
        race({"mine": Contender("onnxruntime", tmp_path / "broken.onnx")}, side=32, threads=1, turns=1)


def test_nncf_quantizes_the_same_graph(graph, tmp_path):
    """Its file runs in a turn, close to the float graph's answers, and its weights count."""
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    rng = np.random.default_rng(0)
    pictures = [rng.standard_normal((1, 3, 32, 32)).astype(np.float32) for _ in range(4)]
    contender = Contender("openvino", quantize_by_nncf(graph, tmp_path, pictures))
    operators = {operator.get_type_name() for operator in openvino.Core().read_model(contender.file).get_ops()}
    assert "FakeQuantize" in operators
    wanted, got = (opened(*one, 1)(pictures[0]) for one in (("onnxruntime", graph), ("openvino", contender.file)))
    assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    assert contender.file_bytes > contender.file.stat().st_size
