"""Exported graphs with sam-edge's own kernels in place of the nodes that they compute faster.

An export notes which nodes those are (`kernels` of a graph in `model.json`: see `sam_edge.export.kernel_notes`), and
which only round for ONNX Runtime's sake (`roundings`), in whose place other runtimes have what they are given. An ONNX
file is a protobuf message, and all that is needed of that format is to leave nodes out and to put others in
(protobuf.dev/programming-guides/encoding).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sam_edge.errors import ExportError

DOMAIN = "sam_edge"
POSITIONAL = "PositionalAttention"
ATTENTIONS = (POSITIONAL, "BiasedAttention")
OPERATORS = (*ATTENTIONS, "GeluOfIntegers", "GeluToIntegers")
"""As csrc/onnxruntime.cpp registers them."""
SAME = "Identity"
"""ONNX's own operator that hands on what it is given."""
GRAPH, OPSETS = 7, 8
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12
NAME = 8
"""Numbers of a model's fields, of a graph's, and of a constant's."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""How a field's value is written."""


def with_kernels(model: bytes, notes: Sequence[Mapping[str, Any]], *, rounded: bool = False) -> bytes:
    """The bytes of an ONNX file with a kernel's operator in place of what its export has noted.

    `rounded` lets attention's products be of bfloat16 where the processor multiplies it. Notes that another version
    wrote of an operator that is not here are passed over.

    Raises:
        ExportError: notes that are none, or of another graph.
    """
    try:
        notes = [_as_operator(note, rounded) for note in notes if note.get("operator") in (*OPERATORS, SAME)]
        parts = [part for number, part in _fields(memoryview(model)) if number != GRAPH]
        (graph,) = (part for number, part in _fields(memoryview(model)) if number == GRAPH)
        opset = _text(1, DOMAIN) + _number(2, 1)
        return b"".join([*parts, _message(GRAPH, _graph(_content(graph), notes)), _message(OPSETS, opset)])
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        # what was written by hand, or cut: neither is checked before
        raise ExportError(
            f"a graph and what model.json notes of its kernels do not fit ({error}): export it again."
        ) from error


def unrounded(notes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Notes of `roundings` as `with_kernels` takes them."""
    return [{**note, "operator": SAME, "attributes": {}} for note in notes]


def _as_operator(note: Mapping[str, Any], rounded: bool) -> Mapping[str, Any]:
    if note["operator"] not in ATTENTIONS:
        return note
    return {**note, "attributes": {**note["attributes"], "rounded": int(rounded)}}


def attention_alone(
    model: bytes,
    note: Mapping[str, Any],
    sizes: Sequence[Sequence[int]],
    result: Sequence[int],
    *,
    kernel: bool,
    rounded: bool = False,
) -> bytes:
    """One noted attention of an ONNX file as a graph of its own, by its nodes or by the kernel.

    `sizes` are those of its float32 inputs, in the order of the note; `result` that of its output.
    """
    places = {at for start, length in note["nodes"] for at in range(start, start + length)}
    (graph,) = (part for number, part in _fields(memoryview(model)) if number == GRAPH)
    fields = list(_fields(_content(graph)))
    nodes = [part for number, part in fields if number == NODE]
    parts: list[bytes | memoryview] = [nodes[at] for at in sorted(places)]
    if kernel:
        parts = [_message(NODE, _operator(_as_operator(note, rounded)))]
    # tables of positions are given like the rest
    given = {name.encode() for name in note["inputs"]}
    parts += [part for number, part in fields if number == INITIALIZER and _name(part) not in given]
    parts += [_message(INPUT, _value(name, size)) for name, size in zip(note["inputs"], sizes, strict=True)]
    parts += [_text(2, "attention"), _message(OUTPUT, _value(note["output"], result))]
    others = [part for number, part in _fields(memoryview(model)) if number != GRAPH]
    opset = _text(1, DOMAIN) + _number(2, 1)
    return b"".join([*others, _message(GRAPH, b"".join(parts)), _message(OPSETS, opset)])


def _value(name: str, sizes: Sequence[int]) -> bytes:
    """A graph's input or output: its name, and float32 (1) of these sizes."""
    shape = b"".join(_message(1, _number(1, size)) for size in sizes)
    return _text(1, name) + _message(2, _message(1, _number(1, 1) + _message(2, shape)))


def _graph(graph: memoryview, notes: Sequence[Mapping[str, Any]]) -> bytes:
    places = {at: note for note in notes for start, length in note["nodes"] for at in range(start, start + length)}
    lasts = {max(start + length for start, length in note["nodes"]) - 1 for note in notes}
    parts: list[bytes | memoryview] = []
    index = 0
    for number, part in _fields(graph):
        if number == NODE:
            if index not in places:
                parts.append(part)
            elif index in lasts:
                parts.append(_message(NODE, _operator(places[index])))
            index += 1
        else:
            parts.append(part)
    return b"".join(parts)


def _operator(note: Mapping[str, Any]) -> bytes:
    """A node: its inputs, output, operator, attributes and domain."""
    inputs = b"".join(_text(1, name) for name in note["inputs"])
    attributes = b"".join(_message(5, _attribute(name, value)) for name, value in note["attributes"].items())
    domain = "" if note["operator"] == SAME else DOMAIN
    return inputs + _text(2, note["output"]) + _text(4, note["operator"]) + attributes + _text(7, domain)


def _attribute(name: str, value: float) -> bytes:
    """A float (type 1) or an integer (2)."""
    if isinstance(value, float):
        return _text(1, name) + _tag(2, FIXED32) + struct.pack("<f", value) + _number(20, 1)
    return _text(1, name) + _number(3, value) + _number(20, 2)


def _name(initializer: memoryview) -> bytes:
    """What a constant of a graph is called."""
    (name,) = (bytes(_content(part)) for number, part in _fields(_content(initializer)) if number == NAME)
    return name


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Each field's number and all of its bytes."""
    at = 0
    while at < len(message):
        key, end = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            _, end = _varint(message, end)
        elif kind == BYTES:
            size, end = _varint(message, end)
            end += size
        else:
            end += {FIXED64: 8, FIXED32: 4}[kind]
        yield key >> 3, message[at:end]
        at = end


def _content(field: memoryview) -> memoryview:
    """What a field of bytes holds."""
    _, at = _varint(field, 0)
    _, at = _varint(field, at)
    return field[at:]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number in 7 bits per byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _tag(number: int, kind: int) -> bytes:
    return _encoded(number << 3 | kind)


def _number(number: int, value: int) -> bytes:
    return _tag(number, VARINT) + _encoded(value)


def _message(number: int, content: bytes) -> bytes:
    return _tag(number, BYTES) + _encoded(len(content)) + content


def _text(number: int, value: str) -> bytes:
    return _message(number, value.encode())
