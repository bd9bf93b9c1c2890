"""What a graph's quantizers hold, whatever the containers of their integers."""

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def quantizers(graph: GraphProto) -> Iterator[NodeProto]:
    """Those of a graph and of the graphs inside it."""
    for node in graph.node:
        if node.op_type in QUANTIZERS:
            yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from quantizers(attribute.g)


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Constants of a graph and of the graphs inside it."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found |= constants(attribute.g)
    return found


def grids(model: ModelProto) -> list[tuple]:
    """Of each quantizer: its place in the graph, its scale, the steps of its grid below zero, and constants' steps."""
    tensors = constants(model.graph)

    def steps(node: NodeProto) -> tuple:
        value, scale, zero = (tensors.get(name) for name in node.input)
        assert scale is not None
        assert zero is not None
        origin = numpy_helper.to_array(zero)
        # a grid of int8 starts at -128, one of uint8 at 0
        below = origin.astype(int) - np.iinfo(origin.dtype).min
        held = None
        if value is not None and node.op_type == "DequantizeLinear":
            integers = numpy_helper.to_array(value)
            assert integers.dtype == origin.dtype
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            shape = [-1 if origin.ndim and at == axis % integers.ndim else 1 for at in range(integers.ndim)]
            held = (integers.astype(int) - origin.astype(int).reshape(shape)).tolist()
        return (
            node.op_type,
            tuple(node.input),
            tuple(node.output),
            numpy_helper.to_array(scale).tolist(),
            below.tolist(),
            held,
        )

    return [steps(node) for node in quantizers(model.graph)]
