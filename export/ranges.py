"""Which nodes of a graph cannot do with 16 bits, read from what they compute of photos in float32.

A value is rounded to 16 bits at two places: where a node gives it, and where a node takes it. What that costs at the
graph's end is estimated, to first order. Of each node is measured how much its result changes, relative to its norm,
when one input alone is rounded (`Readings`). That ratio to the input's own rounding error is the node's gain: about one
for a product or a sum, large for a softmax of large scores, a sine of many turns, a difference of almost equal numbers.
Gains multiply along paths, and independent errors add in squares (`sensitivities`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from sam_edge.export.walk import LARGEST_HALF, MOVES, Walk, compute, rounded

HEADROOM = 4.0
"""How much larger than on the photos that were read values may become before a half overflows."""
UNIT = {TensorProto.FLOAT16: 2.0**-11, TensorProto.BFLOAT16: 2.0**-9}
"""Largest relative error of rounding once."""
BY_HEAD = frozenset(("Add", "Sub", "Mul", "Div", "MatMul", "Softmax"))
"""Operators that compute each head of an attention (B x heads x N x M) by itself."""
LARGEST_WHOLE = 1 << 26
"""Elements above which these are read head by head."""
SUMS = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "ReduceSum", "ReduceMean", "ReduceSumSquare"))
"""Operators that add many terms: written so that they add in float32, whatever they take and give."""


@dataclass
class Readings:
    """What was read of a graph, over all its calls."""

    kind: int
    """The type in question, of ONNX's."""
    peaks: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Largest finite magnitude of each value and weight."""
    errors: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Error of rounding each, relative to its norm."""
    effects: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    """Per node (by its first output) and place of an input: relative change of the result when that input is rounded.
    Infinite where the result is no longer finite, or where it is an integer or truth value that changes."""

    def read(self, walk: Walk, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Walk once more; returns the outputs."""
        # masked scores are infinite, or as good as
        with np.errstate(over="ignore", invalid="ignore"):
            for name in walk.inputs:
                self._value(name, inputs[name])
            for name in walk.weights.keys() - self.errors.keys():
                self._value(name, walk.weights[name])
            return walk.run(inputs, lambda node, taken, given: self._node(walk, node, taken, given))

    def _value(self, name: str, values: np.ndarray) -> None:
        if values.dtype != np.float32 or not values.size:
            return
        peak = max(float(values.max()), -float(values.min()))
        if not np.isfinite(peak):
            peak = float(np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max())
        self.peaks[name] = max(self.peaks[name], peak)
        flat = values.reshape(-1)
        parts = (flat[first : first + LARGEST_WHOLE] for first in range(0, flat.size, LARGEST_WHOLE))
        self.errors[name] = max(self.errors[name], change((part, self._rounded(part)) for part in parts))

    def _coarse(self, node: onnx.NodeProto, taken: list[Any], place: int, kinds: list[int]) -> list[np.ndarray]:
        """The results when one input alone is rounded."""
        return compute(node, [*taken[:place], self._rounded(taken[place]), *taken[place + 1 :]], kinds)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        """Rounded as if exponents had no end: overflow is told by peaks, and must not show as a loss of precision."""
        result = rounded(values, self.kind)
        if np.isinf(_square(result)):
            result = np.where(np.isinf(result), rounded(values / 2**16, self.kind) * 2**16, result)
        return result

    def _node(self, walk: Walk, node: onnx.NodeProto, taken: list[Any], given: list[np.ndarray]) -> None:
        names = [name for name in node.output if name]
        for name, values in zip(names, given, strict=True):
            self._value(name, values)
        kinds = [walk.types[name] for name in names]
        for place, (name, values) in enumerate(zip(node.input, taken, strict=True)):
            if values is None or values.dtype != np.float32 or not self.errors[name]:
                continue
            if node.op_type in MOVES or node.op_type in ("Cast", "QuantizeLinear"):
                # what is rounded to a grid is as if it were not: the grid's own error was chosen
                effect = self.errors[name]
            else:
                effect = change(
                    pair
                    for part, before in _parts(node, taken, given)
                    for pair in zip(before, self._coarse(node, part, place, kinds), strict=True)
                )
            self.effects[names[0], place] = max(self.effects[names[0], place], effect)


def _parts(
    node: onnx.NodeProto, taken: list[Any], given: list[np.ndarray]
) -> Iterator[tuple[list[Any], list[np.ndarray]]]:
    """A node's inputs and results, or those of each head where they are an attention's, which would not fit twice."""
    (heads,) = given[0].shape[1:2] or (1,)
    large = given[0].ndim == 4 and max(value.size for value in (*given, *filter(_is_array, taken))) > LARGEST_WHOLE
    if not large or node.op_type not in BY_HEAD or any(value.ndim not in (0, 4) for value in filter(_is_array, taken)):
        yield taken, given
        return
    for head in range(heads):
        one = slice(head, head + 1)
        parts = [value[:, one] if value.ndim == 4 and value.shape[1] == heads else value for value in taken]
        yield parts, [value[:, one] for value in given]


def _is_array(value: Any) -> bool:
    return value is not None


def change(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Norm of the difference of what was before and after, in parts, relative to the norm before; infinite for another
    integer, or where finite becomes not."""
    errors = norms = 0.0
    for before, after in pairs:
        error, norm = _squares(before, after)
        errors, norms = errors + error, norms + norm
    if not errors:
        return 0.0
    return float(np.sqrt(errors / norms)) if norms else np.inf


def _squares(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Squared norms of the difference and of what was before, over what was finite."""
    if before.dtype != np.float32:
        return (0.0 if np.array_equal(before, after) else np.inf), 1.0
    norm = _square(before)
    error = _square(before - after) if 0 < norm < np.inf else np.inf
    if np.isfinite(error):
        return error, norm
    finite = np.isfinite(before)
    if not np.isfinite(after[finite]).all():
        return np.inf, 1.0
    wide = before[finite].astype(np.float64)
    return _square(wide - after[finite]), _square(wide)


def _square(values: np.ndarray) -> float:
    """The norm's square."""
    flat = values.ravel()
    return float(np.dot(flat, flat))


def sensitivities(
    model: onnx.ModelProto, readings: Readings, outputs: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Per value and weight: relative change at the graph's end for one of its own. `outputs` are those of the graph's
    outputs, 1 where they are the end."""
    ends = [value.name for value in model.graph.output]
    squares = defaultdict(float, {name: (outputs or {}).get(name, 1.0) ** 2 for name in ends})
    for node in reversed(model.graph.node):
        after = sum(squares[name] for name in node.output if name)
        for place, name in enumerate(node.input):
            effect = readings.effects.get((node.output[0], place), 0.0)
            if node.op_type == "DequantizeLinear" and place == 0:
                squares[name] += after
            elif np.isinf(effect):
                squares[name] = np.inf
            elif effect and after:
                squares[name] += after * (effect / readings.errors[name]) ** 2
    return {name: float(np.sqrt(square)) for name, square in squares.items()}


@dataclass(frozen=True)
class Kept:
    """A node that computes in float32."""

    node: str
    operator: str
    reason: str
    takes: bool
    """Whether it takes float32; else it only gives it."""
    gives: bool
    """Whether it gives float32; else it only takes it."""


def keep(model: onnx.ModelProto, readings: Readings, felt: Mapping[str, float], tolerance: float) -> dict[str, Kept]:
    """The nodes, by their first output, whose inputs or results keep float32: what would overflow, and what would move
    the graph's end by more than `tolerance`. `felt` are the `sensitivities`."""
    kept: dict[str, Kept] = {}
    for node in model.graph.node:
        taking = _takes(node, readings, felt, tolerance)
        giving = next(filter(None, (_gives(name, readings, felt, tolerance) for name in node.output)), None)
        if taking or giving:
            key = node.output[0]
            reason = "; ".join(dict.fromkeys(filter(None, (taking, giving))))
            kept[key] = Kept(node.name or key, node.op_type, reason, bool(taking), bool(giving))
    return kept


def _takes(node: onnx.NodeProto, readings: Readings, felt: Mapping[str, float], tolerance: float) -> str | None:
    """Why a node's inputs are not rounded, if so."""
    after = max((felt.get(name, 0.0) for name in node.output if name), default=0.0)
    for place, name in enumerate(node.input):
        if (large := _overflows(name, readings)) is not None:
            return large
        effect = readings.effects.get((node.output[0], place), 0.0)
        if effect and effect * max(after, float(np.isinf(effect))) > tolerance:
            return f"rounding {name} changes its result" + (f" by {effect:.2g}" if np.isfinite(effect) else "")
    return None


def _gives(name: str, readings: Readings, felt: Mapping[str, float], tolerance: float) -> str | None:
    """Why a result is not rounded, if so."""
    if (large := _overflows(name, readings)) is not None:
        return large
    moved = readings.errors.get(name, 0.0) and readings.errors[name] * felt.get(name, 0.0)
    return f"rounding {name} moves the end by {moved:.2g}" if moved > tolerance else None


def _overflows(name: str, readings: Readings) -> str | None:
    peak = readings.peaks.get(name, 0.0)
    if readings.kind != TensorProto.FLOAT16 or peak * HEADROOM <= LARGEST_HALF:
        return None
    return f"{name} reaches {peak:.3g}, and halves end at {LARGEST_HALF:.0f}"
