"""An ONNX graph computed node by node, each result rounded to the type that the graph gives it.

A node computes in float32, by ONNX Runtime, of inputs that its type can hold; then its result is rounded: to IEEE half
(more than 65504 becomes infinite), to bfloat16, or to E4M3. So products are summed in float32, and nothing wider than a
type passes from one node to the next. A session of the whole graph would not show that: on the CPU ONNX Runtime
computes halves in float32 over many nodes, and 300 x 300 survives.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper

from sam_edge.errors import ExportError
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.graphs import GraphRuntime, Values
from sam_edge.runtimes.threads import cpu_threads

FLOATS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
}
"""Types whose values a walk holds as float32."""
LARGEST_HALF = 65504.0
LARGEST_E4M3 = 448.0
MOVES = frozenset(
    ["Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "ScatterND"]
).union(["Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"])
"""Operators that give elements of what they take, which no rounding changes a second time."""
Step = Callable[[onnx.NodeProto, list[Any], list[np.ndarray]], None]
"""Hears of a node, its inputs (None where one is left out) and what it gave."""


def rounded(
    values: Float32[np.ndarray, "*n"], kind: int, in_place: bool = False, at_once: int = 1 << 24
) -> Float32[np.ndarray, "*n"]:
    """The nearest values that a type of ONNX's holds, as float32; E4M3 saturates, as QuantizeLinear does.

    `at_once` values: what lies between is no second and third copy of a whole attention.
    """
    if kind == TensorProto.FLOAT:
        return values
    given = np.ascontiguousarray(values).reshape(values.shape)
    result = given if in_place and given.flags.writeable else np.empty_like(given)
    source, target = (torch.from_numpy(one.reshape(-1)) for one in (given, result))
    for first in range(0, given.size, at_once):
        part = source[first : first + at_once]
        if kind == TensorProto.FLOAT8E4M3FN:
            part = part.clamp(-LARGEST_E4M3, LARGEST_E4M3)
        target[first : first + at_once] = part.to(FLOATS[kind])
    return result


def compute(node: onnx.NodeProto, inputs: list[Any], kinds: list[int]) -> list[np.ndarray]:
    """What a node gives of arrays, in float32 where `kinds` (the types of its outputs) are floats: not yet rounded.

    Raises:
        ExportError: an operator outside of ONNX's own, or one that ONNX Runtime does not compute.
    """
    if node.op_type == "Cast" and kinds[0] in FLOATS and inputs[0].dtype == np.float32:
        return [inputs[0]]
    if node.op_type == "QuantizeLinear" and kinds[0] in FLOATS:
        return [inputs[0] / _along(inputs[1], inputs[0], _axis(node))]
    if node.op_type == "DequantizeLinear" and inputs[0].dtype == np.float32:
        return [inputs[0] * _along(inputs[1], inputs[0], _axis(node))]
    given = {f"i{index}": value for index, value in enumerate(inputs) if value is not None}
    types = tuple(helper.np_dtype_to_tensor_dtype(value.dtype) for value in given.values())
    session = _session(_alone(node), tuple(given), types, tuple(map(_held, kinds)))
    try:
        return session.run(None, given)
    except Exception as error:
        raise ExportError(
            f"node {node.name or node.op_type} cannot be computed: {' '.join(str(error).split())}."
        ) from error


def _held(kind: int) -> int:
    return TensorProto.FLOAT if kind in FLOATS else kind


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _along(scale: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    """A scale, of which there is one or one per entry of an axis, in a form that spreads over `values`."""
    return (
        scale.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)])
        if scale.ndim
        else scale
    )


def _alone(node: onnx.NodeProto) -> bytes:
    """A node by itself in float32, under names that alike nodes share."""
    if node.domain not in ("", "ai.onnx"):
        raise ExportError(
            f"node {node.name} is of {node.domain}'s own operators, not of ONNX's: export the graph plainly."
        )
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.ClearField("name")
    del alone.input[:], alone.output[:]
    alone.input.extend(f"i{index}" if name else "" for index, name in enumerate(node.input))
    alone.output.extend(f"o{index}" if name else "" for index, name in enumerate(node.output))
    for attribute in alone.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            raise ExportError(f"node {node.name} ({node.op_type}) has a graph within it: such are not typed.")
        if node.op_type == "Cast" and attribute.name == "to":
            attribute.i = _held(attribute.i)
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    return alone.SerializeToString(deterministic=True)


@cache
def _session(node: bytes, names: tuple[str, ...], types: tuple[int, ...], outputs: tuple[int, ...]) -> Any:
    alone = onnx.NodeProto.FromString(node)
    graph = helper.make_graph(
        [alone],
        "node",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, types, strict=True)],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in zip(alone.output, outputs, strict=True)
            if name
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_threads()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


OPSET = 20
"""Of the graphs that `sam_edge.export` writes."""


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value and weight of a graph."""
    light = onnx.ModelProto()
    light.CopyFrom(model) if model.ByteSize() < 1 << 20 else _without_weights(model, light)
    inferred = onnx.shape_inference.infer_shapes(light, strict_mode=False).graph
    types = {weight.name: weight.data_type for weight in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in model.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise ExportError(f"the type of {name}, which {node.op_type} gives, is not known.")
    return types


def _without_weights(model: onnx.ModelProto, light: onnx.ModelProto) -> None:
    """The same graph with its large weights as inputs: types need no values, and 2 GB is all that inference takes."""
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        if len(weight.raw_data) > 1024:
            light.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
        else:
            light.graph.initializer.append(weight)


class Walk:
    """A graph, ready to be walked."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Weights are read and held as float32, or as the integers they are."""
        self.nodes = list(model.graph.node)
        self.types = value_types(model)
        self.weights = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.weights]
        self.outputs = [value.name for value in model.graph.output]
        self._last_use = {name: index for index, node in enumerate(self.nodes) for name in node.input}

    def run(self, inputs: Mapping[str, np.ndarray], step: Step | None = None) -> dict[str, np.ndarray]:
        """The outputs, floats as float32 arrays that their types hold; `step` hears of every node."""
        values = dict(self.weights)
        for name in self.inputs:
            value = np.asarray(inputs[name])
            values[name] = rounded(value.astype(np.float32), self.types[name]) if self.types[name] in FLOATS else value
        for index, node in enumerate(self.nodes):
            kinds = [self.types[name] for name in node.output if name]
            taken = [values[name] if name else None for name in node.input]
            given = compute(node, taken, kinds)
            if node.op_type not in MOVES:
                given = [
                    rounded(v, kind, in_place=all(v is not one for one in taken)) if kind in FLOATS else v
                    for v, kind in zip(given, kinds, strict=True)
                ]
            if step is not None:
                step(node, taken, given)
            values.update(zip([name for name in node.output if name], given, strict=True))
            for name in {*node.input, *node.output}:
                if name and self._last_use.get(name, -1) <= index and name not in self.outputs:
                    values.pop(name, None)
        return {name: values[name] for name in self.outputs}


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    values = numpy_helper.to_array(tensor)
    return values.astype(np.float32) if tensor.data_type in FLOATS else values


class WalkRuntime(GraphRuntime):
    """An exported folder's graphs, or others in their place, by walks: slow, and exact about types."""

    def __init__(self, folder: ExportedFolder, graphs: Mapping[str, Path | onnx.ModelProto]) -> None:
        """`graphs` are ONNX files, or what they hold."""
        super().__init__(folder)
        self.name, self.device = "walk", "cpu"
        self._graphs = graphs
        self._walks: dict[str, Walk] = {}

    def walk(self, graph: str) -> Walk:
        """A graph's walk, made at its first use."""
        if graph not in self._walks:
            found = self._graphs[graph]
            self._walks[graph] = Walk(found if isinstance(found, onnx.ModelProto) else onnx.load(found))
        return self._walks[graph]

    def _run(self, graph: str, inputs: Values) -> Values:
        return self.walk(graph).run(inputs)
