"""sam_edge.export.node_layers: a node's layer is that of the weights that it multiplies by."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from sam_edge.export.node_layers import layers_of_nodes


def test_products_of_quantized_weights_are_told_by_their_scales(tmp_path):
    names = {"w": "encoder.blocks.0.attn.q.weight_scale", "x": "encoder.blocks.0.attn.q.input.scale"}
    scales = [numpy_helper.from_array(np.array(0.1, np.float32), name) for name in names.values()]
    integers = numpy_helper.from_array(np.ones((4, 4), np.int8), "folded")
    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", names["x"]], ["rounded"], "round"),
        helper.make_node("DequantizeLinear", ["rounded", names["x"]], ["activation"], "back"),
        helper.make_node("DequantizeLinear", ["folded", names["w"]], ["weight"], "weigh"),
        helper.make_node("MatMul", ["activation", "weight"], ["y"], "product"),
        helper.make_node("MatMul", ["y", "y"], ["z"], "of activations"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("pixels", "z")]
    graph = helper.make_graph(nodes, "encoder", values[:1], values[1:], [*scales, integers])
    save(helper.make_model(graph), tmp_path / "encoder.onnx")
    assert layers_of_nodes(tmp_path / "encoder.onnx") == {"product": "image_encoder.blocks.0.attn.q"}
