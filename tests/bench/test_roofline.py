"""sam_edge.bench.roofline: a profile's nodes, their work, and a chart of them."""

import json
import math
from xml.etree import ElementTree

import pytest

from sam_edge.bench import roofline
from sam_edge.bench.kernels import Rates
from sam_edge.bench.roofline import by_operator, chart, nodes_of
from sam_edge.kernels.attention import work

RATES = Rates(multiplications_per_s=1e9, bytes_per_s=1e9)


def event(operator, inputs, outputs, durations_us, index=0, **sizes):
    """The events of a node over several runs, as ONNX Runtime writes them."""
    arguments = {
        "op_name": operator,
        "node_index": str(index),
        "input_type_shape": inputs,
        "output_type_shape": outputs,
    }
    arguments |= {key: str(value) for key, value in sizes.items()}
    name = f"node_{operator}_{index}_kernel_time"
    return [{"cat": "Node", "name": name, "dur": time, "args": arguments} for time in durations_us]


def test_times_are_medians_after_the_first_run():
    (node,) = nodes_of(event("Add", [{"float": [4]}], [{"float": [4]}], [9000, 1000, 2000, 6000]), RATES)
    assert node.ms == 2.0


def test_products_count_their_inner_size():
    """2 x 64 tokens of 160 channels onto 480, whose weights were packed and do not show."""
    events = event("MatMul", [{"float": [2, 64, 160]}], [{"float": [2, 64, 480]}], [1, 1], output_size=1000)
    (node,) = nodes_of(events, RATES)
    assert node.macs == 2 * 64 * 160 * 480
    assert node.limit_ms == pytest.approx(node.macs / 1e6)


def test_convolutions_count_their_weights_at_each_place():
    shown = [{"float": [1, 32, 16, 16]}, {"float": [64, 32, 3, 3]}, {"float": [64]}]
    packed = shown[:1]
    out = [{"float": [1, 64, 8, 8]}]
    wanted = 8 * 8 * 64 * 32 * 9
    assert nodes_of(event("Conv", shown, out, [1, 1]), RATES)[0].macs == wanted
    sizes = {"parameter_size": 4 * 64 * 32 * 9}
    assert nodes_of(event("Conv", packed, out, [1, 1], **sizes), RATES)[0].macs == wanted
    depthwise = [{"float": [1, 64, 8, 8]}, {"float": [64, 1, 3, 3]}]
    assert nodes_of(event("Conv", depthwise, out, [1, 1]), RATES)[0].macs == 8 * 8 * 64 * 9


def test_attention_is_the_kernels_own_count():
    """4 windows of 6 x 8, 3 heads of 10 channels for q and k, 12 for v."""
    inputs = [{"float": shape} for shape in ([4, 48, 30], [4, 48, 30], [4, 48, 36], [11, 10], [15, 10])]
    (node,) = nodes_of(event("PositionalAttention", inputs, [{"float": [4, 48, 36]}], [1, 1]), RATES)
    assert node.macs == work(4, 3, 6, 8, 10, 12).multiplications


def test_what_only_moves_bytes_is_held_against_the_copy():
    sizes = {"activation_size": 3000, "parameter_size": 500, "output_size": 1500}
    (node,) = nodes_of(event("Transpose", [{"float": [5]}], [{"float": [5]}], [20, 20], **sizes), RATES)
    assert (node.macs, node.bytes) == (0, 5000)
    assert node.limit_ms == pytest.approx(0.005)
    assert node.over_limit == pytest.approx(4.0)


def test_operators_are_summed_longest_first():
    events = [
        *event("Add", [{"float": [4]}], [{"float": [4]}], [0, 1000], 0),
        *event("Mul", [{"float": [4]}], [{"float": [4]}], [0, 5000], 1),
        *event("Add", [{"float": [4]}], [{"float": [4]}], [0, 2000], 2),
    ]
    rows = by_operator(nodes_of(events, RATES))
    assert [(row["operator"], row["nodes"], row["ms"]) for row in rows] == [("Mul", 1, 5.0), ("Add", 2, 3.0)]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_the_chart_is_drawn_to_scale_and_asks_nobody():
    events = [
        *event("MatMul", [{"float": [64, 160]}], [{"float": [64, 480]}], [0, 10_000], 0),
        *event("<Add>", [{"float": [4]}], [{"float": [4]}], [0, 2500], 1),
    ]
    text = chart(nodes_of(events, RATES), "nano & others")
    drawing = ElementTree.fromstring(text)
    bars = [float(bar.get("width", 0)) for bar in drawing.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars[0] == pytest.approx(4 * bars[1], abs=0.2)
    assert "href" not in text
    assert text.count("http") == 1
    assert chart([], "nothing").startswith("<svg")


def test_the_shipped_graphs_have_a_profile(tmp_path, capsys):
    """The whole command once; what nodes there are is of the machine, that they are counted is not."""
    pytest.importorskip("onnxruntime")
    found = roofline.main(["nano", "--runs", "1", "--threads", "1", "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))
    assert sum(node["macs"] for node in found["nodes"]) > 5e9
    assert all(node["ms"] >= 0 and math.isfinite(node["limit_ms"]) for node in found["nodes"])
    assert set(found["provenance"]["models"]) == {"nano-onnx"}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["bench.json", "layers.csv", "roofline.svg"]
