"""Which nodes of an exported graph are attention with relative positions: the notes by which a runtime puts a kernel of
its own in their place.

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

from sam_edge.models.attention import RESULT, ROLES

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
    """Attention with relative positions in a graph."""

    given: dict[str, ir.Value]
    """By `ROLES`."""
    result: ir.Value
    heads: int
    head_width: int
    """Channels of a head's q."""


def take_marks(model: ir.Model) -> list[MarkedAttention]:
    """Take the marks out of a graph, and return where they were."""
    found: list[MarkedAttention] = []
    given: dict[str, ir.Value] = {}
    for node in [node for node in model.graph if node.domain == MARKS]:
        (marked,), (after,) = node.inputs, node.outputs
        assert marked is not None
        assert after.dtype is not None
        role = node.attributes["role"].as_string()
        if role == RESULT:
            channels, head_width = (_channels(given[name]) for name in ("q", "rel_pos_h"))
            found.append(MarkedAttention(given, marked, channels // head_width, head_width))
            given = {}
        else:
            given[role] = marked
        marked.shape, marked.dtype = after.shape, after.dtype
        after.replace_all_uses_with(marked)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(MARKS, None)
    return found


def _channels(value: ir.Value) -> int:
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int)
    return size


def note_attention(graph: ir.Graph, marked: list[MarkedAttention]) -> list[dict[str, Any]]:
    """Per attention in float32: `nodes` as [start, length] stretches of the graph's, names of the `inputs` (by `ROLES`)
    and of the `output`, how many `heads` it has, and the `scale` of its scores."""
    nodes = list(graph)
    places = {node: index for index, node in enumerate(nodes)}
    return [
        {
            "nodes": _stretches([places[node] for node in _between(nodes, one)]),
            "inputs": [one.given[role].name for role in ROLES],
            "output": one.result.name,
            "heads": one.heads,
            "scale": one.head_width**-0.5,
        }
        for one in marked
        if one.result.dtype == ir.DataType.FLOAT
    ]


def _between(nodes: list[ir.Node], marked: MarkedAttention) -> Iterator[ir.Node]:
    """The node that gives the result, and those that are there for its sake alone, in rising order."""
    kept = {value.producer() for value in marked.given.values()}
    dropped: set[ir.Node] = set()
    for node in reversed(nodes):
        users = {user for value in node.outputs for user in value.consumers()}
        if marked.result in node.outputs or (users and users <= dropped and node not in kept):
            dropped.add(node)
    return (node for node in nodes if node in dropped)


def _stretches(places: list[int]) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(places) != 1) + 1
    return [[int(part[0]), len(part)] for part in np.split(np.array(places), edges)]
