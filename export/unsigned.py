"""Where an integer graph's signs are: the notes by which it is read without them on processors that need it so.

See `sam_edge.runtimes.clipping`, which reads them and says why. `python -m sam_edge.export.unsigned` writes the product
by which a processor is asked.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from jaxtyping import Bool
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

from sam_edge.errors import ExportError
from sam_edge.runtimes.clipping import PROBE, SIGN, TYPE

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def note_signs(file: Path) -> dict[str, list[Any]]:
    """The bytes of an integer graph's file that differ in its form without signs: `data` as [start, length] stretches
    of the highest bit, `types` as places of the lowest.

    Raises:
        ExportError: the two forms differ in anything else.
    """
    signed = onnx.load(file)
    content = signed.SerializeToString()
    if content != file.read_bytes():
        # as protobuf orders it, so that both forms have everything in the same place
        file.write_bytes(content)
    before, after = (np.frombuffer(part, np.uint8) for part in (content, _without_sign(signed).SerializeToString()))
    if len(before) != len(after):
        raise ExportError(f"{file.name} has another length without signs: {len(after)} bytes, not {len(before)}.")
    changed = before ^ after
    if not np.isin(changed, (0, SIGN, TYPE)).all():
        raise ExportError(f"{file.name} differs by more than signs from its form without them.")
    return {"data": _stretches(changed == SIGN), "types": np.flatnonzero(changed == TYPE).tolist()}


def _stretches(marked: Bool[np.ndarray, "n"]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return [[int(start), int(end - start)] for start, end in edges.reshape(-1, 2)]


def _without_sign(model: ModelProto) -> ModelProto:
    """A copy of a graph with every int8 grid of a quantizer as the uint8 grid of the same values."""
    other = ModelProto()
    other.CopyFrom(model)
    graphs = list(_with_bodies(other.graph))
    quantizers = [node for graph in graphs for node in graph.node if node.op_type in QUANTIZERS]
    # zero points, and weights
    wanted = {name for node in quantizers for name in node.input}
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        if tensor.name in wanted and tensor.data_type == TensorProto.INT8:
            tensor.data_type = TensorProto.UINT8
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.uint8) ^ SIGN).tobytes()
    for graph in graphs:
        # a loop's body says of what type the integers are that it is given
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.INT8:
                value.type.tensor_type.elem_type = TensorProto.UINT8
    return other


def _with_bodies(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _with_bodies(attribute.g)


def probe() -> bytes:
    """One product of a 16 x 64 uint8 input, `left`, and an int8 constant of 127 throughout, serialised."""
    right = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "right")
    given = helper.make_tensor_value_info("left", TensorProto.UINT8, (16, 64))
    result = helper.make_tensor_value_info("product", TensorProto.INT32, (16, 16))
    product = helper.make_node("MatMulInteger", ["left", "right"], ["product"])
    graph = helper.make_graph([product], "probe", [given], [result], [right])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    PROBE.write_bytes(probe())
