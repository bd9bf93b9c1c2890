"""Which layer of a checkpoint a node of an exported encoder computes: what a profile's names say nothing of."""

from pathlib import Path

import onnx

SCALE = ".weight_scale"
"""How the name of a quantized weight's scale ends, behind that of its layer."""


def layers_of_nodes(encoder: Path) -> dict[str, str]:
    """Of each product of quantized weights its layer, by the names of the node and of the checkpoint's config.

    Of a graph in float there are none: the exporter folds its weights into nameless ones.
    """
    nodes = onnx.load(encoder, load_external_data=False).graph.node
    weights = {
        node.output[0]: node.input[1].removesuffix(SCALE)
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[1].endswith(SCALE)
    }
    return {
        node.name: f"image_{weights[value]}" for node in nodes for value in node.input if value in weights and node.name
    }
