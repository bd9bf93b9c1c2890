"""sam_edge.studies.layers: one layer in two forms."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

import onnxruntime as ort

from sam_edge.runtimes.onnx_runtime import session_options
from sam_edge.studies.layers import layer


@pytest.mark.parametrize("kind", ["linear", "convolution", "pointwise", "depthwise"])
def test_both_forms_of_a_layer_compute_the_same(kind):
    results = []
    for integers in (False, True):
        session = ort.InferenceSession(
            layer(kind, 6, 8, 8, integers=integers).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (given,) = session.get_inputs()
        # small enough for the grid of the result
        x = np.random.default_rng(0).uniform(-0.1, 0.1, (1, *given.shape[1:])).astype(np.float32)
        results.append(session.run(None, {"x": (x / 0.05).round() * np.float32(0.05)})[0])
    # of a convolution the result is rounded as well
    assert np.abs(results[1] - results[0]).max() <= 0.0251
    assert np.abs(results[0]).max() > 0.05


def test_products_of_integers_are_integer_products(tmp_path):
    import onnx

    options = session_options({"integers": True})
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for kind, wanted in (("linear", "MatMulIntegerToFloat"), ("depthwise", "QLinearConv")):
        graph = layer(kind, 6, 8, 8, integers=True).SerializeToString()
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        assert wanted in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
