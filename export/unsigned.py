"""Integer graphs for x86 CPUs without VNNI, which do not multiply uint8 by int8 rightly.

AVX2 and plain AVX-512 add two such products in 16 bits and clip the sum: 255 x 127 twice is too much. ONNX Runtime and
OpenVINO take that for speed. Of uint8 by uint8 nothing is clipped, and an int8 grid with zero point z is the uint8 grid
with zero point z + 128: the same values, moved by 128.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

SHIFT = 128
"""From an int8 zero point, or weight, to the uint8 one."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@cache
def clips_products() -> bool:
    """Whether ONNX Runtime clips sums of products of uint8 and int8 on this machine's CPU: it is asked."""
    import onnxruntime as ort

    left, right = np.full((16, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    constant = numpy_helper.from_array(right, "right")
    given = helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape)
    result = helper.make_tensor_value_info("product", TensorProto.INT32, (16, 16))
    product = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    graph = helper.make_graph([product], "probe", [given], [result], [constant])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool((session.run(None, {"left": left})[0] != left.astype(int) @ right.astype(int)).any())


def for_this_cpu(file: Path, precision: str) -> Path | bytes:
    """A graph as this machine's CPU computes it rightly: its file, or that of the same integers without sign."""
    return unsigned_graph(file) if precision == "int8" and clips_products() else file


def unsigned_graph(file: str | Path) -> bytes:
    """An ONNX file's graph with every int8 grid of a quantizer as the uint8 grid of the same values, serialised."""
    model = onnx.load(file)
    graphs = list(_with_bodies(model.graph))
    quantizers = [node for graph in graphs for node in graph.node if node.op_type in QUANTIZERS]
    # zero points, and weights
    wanted = {name for node in quantizers for name in node.input}
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        if tensor.name in wanted and tensor.data_type == TensorProto.INT8:
            shifted = numpy_helper.to_array(tensor).astype(np.int16) + SHIFT
            tensor.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), tensor.name))
    for graph in graphs:
        del graph.value_info[:]
        # a loop's body says of what type the integers are that it is given
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.INT8:
                value.type.tensor_type.elem_type = TensorProto.UINT8
    return bytes(model.SerializeToString())


def _with_bodies(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _with_bodies(attribute.g)
