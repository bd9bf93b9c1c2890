"""Types written into a float32 ONNX graph: 16 bits where nodes can do with them, else float32, and casts between.

TensorRT takes a graph's types as they are (strongly typed). Whatever adds many terms is written as TensorRT is asked
for float32 accumulators: inputs rounded to 16 bits, cast back to float32, summed, and the result rounded again. It
fuses that to one kernel of 16-bit inputs; a product of halves alone leaves the accumulator to it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sam_edge.errors import ExportError
from sam_edge.export.ranges import SUMS, Kept
from sam_edge.export.walk import LARGEST_E4M3, rounded, value_types

FLOAT = TensorProto.FLOAT
NAMES: dict[int, str] = {FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
LEAST: dict[int, float] = {TensorProto.FLOAT16: 2.0**-24, TensorProto.BFLOAT16: 2.0**-126}
"""The least positive numbers of types, bfloat16's without those that lose bits."""
CONTRACT = frozenset(("pixels", "embeddings", "point_coords", "mask_input", "has_mask_input", "logits", "iou"))
"""Inputs and outputs that are float32 in every exported folder; what passes between a decoder's parts has any type."""
E4M3_MULTIPLE = 16
"""Sizes of FP8 products are multiples of it: tensor cores take 16 bytes at a time."""


def write_types(
    model: onnx.ModelProto, kept: Mapping[str, Kept], low: int, between: Mapping[str, int] | None = None
) -> tuple[onnx.ModelProto, list[Kept]]:
    """The graph in `low` (FLOAT16 or BFLOAT16 of ONNX's), but for the `kept`; and all nodes that stay float32.

    `between` are the types of inputs that come from another such graph. Those that stay are the kept, and nodes whose
    operator ONNX does not give the type.

    Raises:
        ExportError: see `value_types`.
    """
    writer = _Writer(model, low, dict(kept), dict(between or {}))
    return writer.written(), list(writer.kept.values())


@dataclass
class _Sides:
    """The types that a node takes and gives."""

    takes: int
    gives: int


@dataclass
class _Writer:
    source: onnx.ModelProto
    low: int
    kept: dict[str, Kept]
    between: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)
    """The type in which each float value is given."""
    renamed: dict[str, str] = field(default_factory=dict)
    forms: dict[tuple[str, str], str] = field(default_factory=dict)
    """Values cast, and weights rounded, by the form they were asked for in."""
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    pending: list[onnx.NodeProto] = field(default_factory=list)
    """Casts that follow the node that is being written."""

    def __post_init__(self) -> None:
        graph = self.source.graph
        self.types = value_types(self.source)
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.giver = {name: node for node in graph.node for name in node.output if name}
        self.takers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)
        self.steps = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
        self.sides = self._sides()

    def _is_float(self, name: str) -> bool:
        return bool(name) and self.types[name] == FLOAT

    def _sides(self) -> dict[str, _Sides]:
        """What each node with floats takes and gives, by its first output."""
        sides: dict[str, _Sides] = {}
        for node in self.source.graph.node:
            if not any(map(self._is_float, (*node.input, *node.output))):
                continue
            key, stays = node.output[0], self.kept.get(node.output[0])
            if stays is None and not self._sums(node) and not _takes_type(node, self.low):
                stays = Kept(node.name or key, node.op_type, f"ONNX has no {NAMES[self.low]} of it", True, True)
                self.kept[key] = stays
            takes, gives = (bool(stays and stays.takes), bool(stays and stays.gives))
            if not self._sums(node):
                takes = gives = takes or gives
            sides[key] = _Sides(*(FLOAT if wide else self.low for wide in (takes, gives)))
        for _ in range(2):
            self._widen(sides)
        return sides

    def _widen(self, sides: dict[str, _Sides]) -> None:
        """Have a node between two in float32 stay in it: it would only be rounded to be cast back."""
        ends = {value.name for value in self.source.graph.output}
        for node in self.source.graph.node:
            key = node.output[0]
            if key not in sides or self._sums(node) or node.op_type == "QuantizeLinear":
                continue
            given = [name for name in node.input if self._is_float(name) and name not in self.stored]
            wide_in = all(name in self.giver and sides[self.giver[name].output[0]].gives == FLOAT for name in given)
            takers = [taker for name in node.output for taker in self.takers.get(name, ()) if self._is_float(name)]
            wide_out = takers and all(sides[taker.output[0]].takes == FLOAT for taker in takers)
            # what dequantizes alone decides nothing: it takes the type of the product that it feeds
            alone = node.op_type == "DequantizeLinear"
            if wide_out and not ends & set(node.output) and (alone or (given and wide_in)):
                sides[key] = _Sides(FLOAT, FLOAT)

    def _sums(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds many terms of floats; of integers, the sum is an integer."""
        return node.op_type in SUMS and not any(
            name in self.giver and self.giver[name].op_type == "DequantizeLinear" for name in node.input
        )

    def written(self) -> onnx.ModelProto:
        graph = self.source.graph
        for value in graph.input:
            self.made[value.name] = self.between.get(value.name, value.type.tensor_type.elem_type)
        ends = {value.name for value in graph.output}
        for node in graph.node:
            self._write(node, ends)
        model = onnx.ModelProto()
        model.CopyFrom(self.source)
        for part in (model.graph.node, model.graph.initializer, model.graph.value_info):
            del part[:]
        model.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | ends
        model.graph.initializer.extend(tensor for name, tensor in self.stored.items() if name in used)
        model.graph.initializer.extend(self.weights.values())
        for value in (*model.graph.input, *model.graph.output):
            if value.type.tensor_type.elem_type == FLOAT and value.name not in CONTRACT:
                value.type.tensor_type.elem_type = self.made.get(value.name, FLOAT)
        onnx.checker.check_model(model) if model.ByteSize() < 1 << 31 else None
        return model

    def _write(self, node: onnx.NodeProto, ends: set[str]) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        sides = self.sides.get(node.output[0])
        if sides is None:
            self.nodes.append(new)
            return
        adds = self._sums(node)
        for place, name in enumerate(node.input):
            if self._is_float(name) and _fixed_float(node, place, self.low) and not adds:
                new.input[place] = self._as(name, FLOAT)
            elif self._is_float(name):
                new.input[place] = self._as(name, sides.takes, widened=adds and sides.takes != FLOAT)
        for place, name in enumerate(node.output):
            if not self._is_float(name):
                continue
            type_within = FLOAT if adds else sides.gives
            outside = FLOAT if name in ends & CONTRACT else sides.gives
            self.made[name] = sides.gives
            if type_within == sides.gives == outside:
                continue
            inner = f"{name}.within"
            new.output[place] = inner
            if type_within != sides.gives:
                inside, inner = inner, name if outside == sides.gives else f"{name}.rounded"
                self.pending.append(_cast(inside, inner, sides.gives))
            if outside != sides.gives:
                self.renamed[name] = inner
                self.pending.append(_cast(inner, name, FLOAT))
        if node.op_type == "Cast" and self._is_float(node.output[0]):
            _set_int(new, "to", sides.gives)
        if node.op_type == "ConstantOfShape" and sides.gives != FLOAT:
            _retype(new, sides.gives)
        self.nodes.append(new)
        self.nodes += self.pending
        self.pending = []

    def _as(self, name: str, kind: int, widened: bool = False) -> str:
        """The name of a value in a type; `widened`, rounded to it and cast back to float32."""
        if widened:
            return self._form(name, "wide", lambda new: _cast(self._as(name, kind), new, FLOAT))
        if name in self.stored:
            if kind == FLOAT:
                return name
            new = f"{name}.{NAMES[kind]}"
            if new not in self.weights:
                values = numpy_helper.to_array(self.stored[name])
                if name in self.steps:
                    # of what is always zero the step may be too small for the type; and a step of zero divides
                    values = np.maximum(values, LEAST[kind])
                self.weights[new] = _tensor(new, values, kind)
            return new
        now = self.renamed.get(name, name)
        if self.made.get(name, FLOAT) == kind:
            return now
        giver = self.giver.get(name)
        if giver is not None and giver.op_type == "DequantizeLinear":
            # a cast between would hide the integers from the product
            return self._form(name, NAMES[kind], lambda new: self._dequantized(giver, new, kind))
        return self._form(name, NAMES[kind], lambda new: _cast(now, new, kind))

    def _dequantized(self, giver: onnx.NodeProto, new: str, kind: int) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(giver)
        node.name, node.output[0], node.input[1] = f"{giver.name}_{NAMES[kind]}", new, self._as(giver.input[1], kind)
        return node

    def _form(self, name: str, form: str, make: Callable[[str], onnx.NodeProto]) -> str:
        if (name, form) not in self.forms:
            self.forms[name, form] = f"{name}.as_{form}"
            # what it is made of may be written first
            node = make(self.forms[name, form])
            self.nodes.append(node)
        return self.forms[name, form]


def _takes_type(node: onnx.NodeProto, kind: int) -> bool:
    """Whether ONNX defines a node's first input and output for a type."""
    schema = onnx.defs.get_schema(node.op_type, 20)
    wanted = _written_type(kind)
    for formal in (*schema.inputs[:1], *schema.outputs[:1]):
        allowed = {str(found) for found in formal.types}
        if "tensor(float)" in allowed and wanted not in allowed:
            return False
    return True


def _fixed_float(node: onnx.NodeProto, place: int, kind: int) -> bool:
    """Whether an input is float32 whatever the node computes in, as the scales of Resize are."""
    inputs = onnx.defs.get_schema(node.op_type, 20).inputs
    # the last formal input may stand for many
    return _written_type(kind) not in {str(found) for found in inputs[min(place, len(inputs) - 1)].types}


def _written_type(kind: int) -> str:
    return "tensor(float16)" if kind == TensorProto.FLOAT16 else "tensor(bfloat16)"


def _cast(name: str, new: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [new], f"cast_{new}", to=kind)


def _tensor(name: str, values: np.ndarray, kind: int) -> onnx.TensorProto:
    """A float tensor of a type, rounded to nearest."""
    held = rounded(values.astype(np.float32), kind)
    return numpy_helper.from_array(held.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def _set_int(node: onnx.NodeProto, name: str, value: int) -> None:
    next(attribute for attribute in node.attribute if attribute.name == name).i = value


def _retype(node: onnx.NodeProto, kind: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "value":
            attribute.t.CopyFrom(_tensor("value", numpy_helper.to_array(attribute.t), kind))


def quantize_to_e4m3(model: onnx.ModelProto, peaks: Mapping[str, float]) -> tuple[onnx.ModelProto, Sequence[str]]:
    """The graph with its linear layers in FP8 (E4M3), and their names: both factors quantized per tensor so that the
    largest magnitude, of activations that of `peaks`, becomes 448. What is already integers, convolutions, and products
    of two activations stay.

    Raises:
        ExportError: no linear layer that FP8 products take.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in new.graph.initializer}
    nodes, done, quantized = [], set(), []
    for node in new.graph.node:
        if _is_linear(node, stored) and peaks.get(node.input[0], 0.0) > 0:
            x, weight = node.input[0], numpy_helper.to_array(stored[node.input[1]])
            if x not in done:
                new.graph.initializer.append(_scale(f"{x}.e4m3_scale", peaks[x]))
                nodes += _through_e4m3(x)
                done.add(x)
            if (name := node.input[1]) not in done:
                new.graph.initializer.append(_scale(f"{name}.e4m3_scale", float(np.abs(weight).max())))
                step = np.float32(np.abs(weight).max() / LARGEST_E4M3)
                new.graph.initializer.append(_tensor(f"{name}.e4m3", weight / step, TensorProto.FLOAT8E4M3FN))
                nodes.append(_dequantize(f"{name}.e4m3", f"{name}.e4m3_scale", f"{name}.back"))
                done.add(name)
            node.input[0], node.input[1] = f"{x}.back", f"{name}.back"
            quantized.append(node.name)
        nodes.append(node)
    if not quantized:
        raise ExportError("no linear layer here can compute in fp8: choose --precision fp16.")
    new.graph.initializer.append(_tensor(E4M3_ZERO, np.zeros((), np.float32), TensorProto.FLOAT8E4M3FN))
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in new.graph.initializer if tensor.name in used]
    del new.graph.initializer[:]
    new.graph.initializer.extend(weights)
    return new, quantized


E4M3_ZERO = "e4m3_zero"


def _is_linear(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    if node.op_type != "MatMul" or node.input[0] in stored or node.input[1] not in stored:
        return False
    sizes = list(stored[node.input[1]].dims)
    return len(sizes) == 2 and all(size % E4M3_MULTIPLE == 0 for size in sizes)


def _scale(name: str, peak: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(peak / LARGEST_E4M3, np.float32), name)


def _through_e4m3(x: str) -> list[onnx.NodeProto]:
    quantize = helper.make_node("QuantizeLinear", [x, f"{x}.e4m3_scale", E4M3_ZERO], [f"{x}.e4m3"], f"quantize_{x}")
    return [quantize, _dequantize(f"{x}.e4m3", f"{x}.e4m3_scale", f"{x}.back")]


def _dequantize(name: str, scale: str, back: str) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [name, scale, E4M3_ZERO], [back], f"dequantize_{name}")


def gelu_by_erf(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with x / 2 (1 + erf(x / sqrt 2)) for Gelu, which ONNX has since opset 20, and not every parser.

    Raises:
        ExportError: a Gelu that is approximated by tanh.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    constants = {"erf_form.root": 0.5**0.5, "erf_form.one": 1.0, "erf_form.half": 0.5}
    nodes: list[onnx.NodeProto] = []
    for node in new.graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        if any(attribute.name == "approximate" and attribute.s != b"none" for attribute in node.attribute):
            raise ExportError(f"{node.name} is a Gelu by tanh, which sam-edge has no other form of.")
        (x,), (y,) = node.input, node.output
        steps = [("Mul", x, "erf_form.root", f"{y}.scaled"), ("Erf", f"{y}.scaled", "", f"{y}.erf")]
        steps += [("Add", f"{y}.erf", "erf_form.one", f"{y}.above"), ("Mul", x, "erf_form.half", f"{y}.half")]
        steps += [("Mul", f"{y}.half", f"{y}.above", y)]
        nodes += [
            helper.make_node(operator, [a, b] if b else [a], [out], f"{node.name}_{out}")
            for operator, a, b, out in steps
        ]
    used = {name for node in nodes for name in node.input} & constants.keys()
    del new.graph.node[:]
    new.graph.node.extend(nodes)
    new.graph.initializer.extend(
        numpy_helper.from_array(np.array(constants[name], np.float32), name) for name in sorted(used)
    )
    return new
