"""Which nodes of an exported graph sam-edge's own kernels compute, and which are there for one runtime alone: the notes
by which runtimes put others in their place.

What is exported stays plain ONNX. See `sam_edge.runtimes.kernels`, which reads the notes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from onnx.defs import OpSchema
from onnxscript import ir
from onnxscript.values import Op, Opset

from sam_edge.models.attention import BIASED_ROLES, RESULT, ROLES

PRODUCTS = ("Conv", "Gemm", "MatMul")
MARKS = "sam_edge.marks"
"""Nodes of this domain stand in a graph while it is made: the optimizer leaves alone what it does not know."""
MARK = Op(
    Opset(MARKS, 1),
    "Mark",
    OpSchema(
        "Mark",
        MARKS,
        1,
        inputs=[OpSchema.FormalParameter("x", "T")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=[
            OpSchema.Attribute("role", OpSchema.AttrType.STRING),
            OpSchema.Attribute("number", OpSchema.AttrType.INT),
        ],
    ),
)


_numbers = count()


def mark(x: Any, role: str) -> Any:
    """The node that `sam_edge.models.attention.marked` becomes.

    Numbered: of tables of equal values the optimizer would make one, and of their marks.
    """
    return MARK(x, role=role, number=next(_numbers))


@dataclass(frozen=True)
class MarkedAttention:
    """Attention in a graph."""

    given: dict[str, ir.Value]
    """By `ROLES`, or by `BIASED_ROLES`."""
    result: ir.Value


def take_marks(model: ir.Model) -> list[MarkedAttention]:
    """Take the marks out of a graph, and return where they were."""
    found: list[MarkedAttention] = []
    given: dict[str, ir.Value] = {}
    for node in [node for node in model.graph if node.domain == MARKS]:
        (marked,), (after,) = node.inputs, node.outputs
        assert marked is not None
        assert after.dtype is not None
        role = node.attributes["role"].as_string()
        marked.shape, marked.dtype = after.shape, after.dtype
        if role == RESULT:
            found.append(MarkedAttention(given, marked))
            given = {}
        else:
            given[role] = marked
        after.replace_all_uses_with(marked)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(MARKS, None)
    return found


def note_kernels(graph: ir.Graph, marked: list[MarkedAttention]) -> list[dict[str, Any]]:
    """Per kernel: `nodes` as [start, length] stretches of the graph's, the `operator` that stands for them, its
    `attributes`, and the names of its `inputs` and of its `output`.

    They are each marked attention in float32, and each GELU whose result is rounded to unsigned integers.
    """
    nodes = list(graph)
    places = {node: index for index, node in enumerate(nodes)}
    found = []
    for one in marked:
        if one.result.dtype == ir.DataType.FLOAT:
            found.append((list(_between(nodes, one)), *_attention(one), one.result))
    for node in nodes:
        if node.op_type == "Gelu" and (gelu := _gelu(node)) is not None:
            found.append(gelu)
    return [
        {
            "nodes": _stretches(sorted(places[node] for node in parts)),
            "operator": operator,
            "attributes": attributes,
            "inputs": [value.name for value in inputs],
            "output": output.name,
        }
        for parts, operator, attributes, inputs, output in found
    ]


def note_roundings(graph: ir.Graph) -> list[dict[str, Any]]:
    """Where a product of integers is rounded and only float layers take it: `nodes` of the two that round, the name of
    what they are given as `inputs`, and of their `output`.

    ONNX Runtime computes a product in integers only between such nodes, and GELU behind one as a table. Others compute
    it without, and in one with what follows.
    """
    found = []
    places = {node: index for index, node in enumerate(graph)}
    for node, place in places.items():
        after = _only_user(node.outputs[0]) if node.op_type == "QuantizeLinear" else None
        if after is None or after.op_type != "DequantizeLinear" or not _is_integers(_given(node, 0).producer()):
            continue
        result = after.outputs[0]
        if result.is_graph_output() or any(_is_integers(user) for user in result.consumers()):
            continue
        nodes = _stretches([place, places[after]])
        found.append({"nodes": nodes, "inputs": [_given(node, 0).name], "output": result.name})
    return found


def _is_integers(node: ir.Node | None) -> bool:
    """Whether a product's both sides are integers."""
    if node is None or node.op_type not in PRODUCTS:
        return False
    sides = [_given(node, index).producer() for index in range(2)]
    return all(side is not None and side.op_type == "DequantizeLinear" for side in sides)


def _attention(marked: MarkedAttention) -> tuple[str, dict[str, Any], list[ir.Value]]:
    """Operator, attributes and inputs."""
    if "bias" not in marked.given:
        inputs = [marked.given[role] for role in ROLES]
        width = _size(inputs[3], -1)
        return "PositionalAttention", {"heads": _size(inputs[0], -1) // width, "scale": width**-0.5}, inputs
    qkv, bias = inputs = [marked.given[role] for role in BIASED_ROLES]
    heads = _size(bias, 0)
    width = (_size(qkv, -1) - _size(marked.result, -1)) // heads // 2
    return "BiasedAttention", {"heads": heads, "width": width, "scale": width**-0.5}, inputs


def _size(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size


def _between(nodes: list[ir.Node], marked: MarkedAttention) -> Iterator[ir.Node]:
    """The node that gives the result, and those that are there for its sake alone, in rising order."""
    kept = {value.producer() for value in marked.given.values()}
    dropped: set[ir.Node] = set()
    for node in reversed(nodes):
        users = {user for value in node.outputs for user in value.consumers()}
        if marked.result in node.outputs or (users and users <= dropped and node not in kept):
            dropped.add(node)
    return (node for node in nodes if node in dropped)


def _gelu(node: ir.Node) -> tuple[list[ir.Node], str, dict[str, Any], list[ir.Value], ir.Value] | None:
    """A GELU between integers, or of a biased sum onto them: its nodes, operator, attributes, inputs and output."""
    (given,), (result,) = node.inputs, node.outputs
    assert given is not None
    after, before = _only_user(result), given.producer()
    exact = "approximate" not in node.attributes or node.attributes["approximate"].as_string() == "none"
    if not exact or before is None or _only_user(given) is not node or (to := _grid(after, "QuantizeLinear")) is None:
        return None
    assert after is not None
    parts = [before, node, after]
    if (step := _grid(before, "DequantizeLinear")) is not None:
        return parts, "GeluOfIntegers", {}, [_given(before, 0), *step, *to], after.outputs[0]
    if before.op_type == "Add":
        x, bias = (_given(before, index) for index in range(2))
        if bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1:
            return parts, "GeluToIntegers", {}, [x, bias, *to], after.outputs[0]
    return None


def _only_user(value: ir.Value) -> ir.Node | None:
    users = set(value.consumers())
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None


def _grid(node: ir.Node | None, kind: str) -> list[ir.Value] | None:
    """Step and zero point of a node that rounds to one grid of unsigned integers, or back from it."""
    if node is None or node.op_type != kind or len(node.inputs) != 3:
        return None
    step, zero = _given(node, 1), _given(node, 2)
    scalars = all(value.is_initializer() and value.shape is not None and not len(value.shape) for value in (step, zero))
    return [step, zero] if scalars and zero.dtype == ir.DataType.UINT8 else None


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _stretches(places: list[int]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(places) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(np.array(places), edges)]
