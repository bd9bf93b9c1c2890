"""sam-edge's kernel of attention with relative positions as an operator of OpenVINO, which takes it from Python.

OpenVINO calls `evaluate` of such an operator on one thread of its own, and the kernel takes as many as it is given.
What goes in and out of it is float32 and is copied, which costs more than there is to gain on TinyViT's small windows;
and GELU onto integers OpenVINO fuses into the layer before.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from sam_edge.kernels.attention import attention
from sam_edge.kernels.library import level
from sam_edge.runtimes.kernels import DOMAIN, POSITIONAL

TAKEN = (POSITIONAL,)
"""Of `sam_edge.runtimes.kernels.OPERATORS`."""
WIDE = 64
"""Channels of a head from which OpenVINO's own attention is the faster in a float graph."""


def taken(notes: Sequence[Mapping[str, Any]], *, integers: bool) -> list[Mapping[str, Any]]:
    """The notes of a graph that the kernel gains on; `integers` says whether the graph has any."""
    found = [note for note in notes if note.get("operator") in TAKEN]
    # scores are scaled by the root of a head's channels
    return [note for note in found if integers or round(note["attributes"]["scale"] ** -2) < WIDE]


def add_kernels(core: Any, threads: int) -> None:
    """Let a `Core` read graphs with `TAKEN` in them; `threads` 0 is one."""
    from openvino.frontend.onnx import ConversionExtension

    for name in TAKEN:
        core.add_extension(ConversionExtension(name, DOMAIN, _reader(max(threads, 1))))


def _reader(threads: int) -> Callable[[Any], list[Any]]:
    def read(node: Any) -> list[Any]:
        inputs = [node.get_input(index) for index in range(node.get_input_size())]
        heads, scale, rounded = (node.get_attribute(name) for name in ("heads", "scale", "rounded"))
        channels, table = inputs[0].get_partial_shape()[2], inputs[3].get_partial_shape()[1]
        if channels.is_static and table.is_static and channels.get_length() != heads * table.get_length():
            # told here: what fails while it runs ends the process at a later inference
            raise ValueError(f"its note says {heads} heads, which do not fit its positions")
        return _operator()(inputs, int(heads), float(scale), bool(rounded), threads).outputs()

    return read


@cache
def _operator() -> type:
    """The class, which needs OpenVINO to be there."""
    from openvino import Op

    class PositionalAttention(Op):
        def __init__(self, inputs: list[Any], heads: int, scale: float, rounded: bool, threads: int) -> None:
            super().__init__(self)
            self._settings = heads, scale, rounded, threads
            self.set_arguments(inputs)
            self.constructor_validate_and_infer_types()

        def validate_and_infer_types(self) -> None:
            self.set_output_type(0, self.get_input_element_type(2), self.get_input_partial_shape(2))

        def clone_with_new_inputs(self, inputs: list[Any]) -> "PositionalAttention":
            return PositionalAttention(inputs, *self._settings)

        def visit_attributes(self, visitor: Any) -> bool:
            visitor.on_attributes(dict(zip(("heads", "scale"), self._settings, strict=False)))
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
            try:
                self._evaluate(outputs, inputs)
            except Exception:
                # which OpenVINO would swallow, and go on with nothing; this is an error of its own
                return False
            return True

        def _evaluate(self, outputs: list[Any], inputs: list[Any]) -> None:
            heads, scale, rounded, threads = self._settings
            *tokens, rel_pos_h, rel_pos_w = (tensor.data for tensor in inputs)
            q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in tokens)
            options: dict[str, Any] = {"threads": threads, "level": level(rounded=rounded)}
            found = attention(q, k, v, rel_pos_h, rel_pos_w, scale, **options)
            outputs[0].data[:] = found.transpose(0, 2, 1, 3).reshape(outputs[0].data.shape)

    return PositionalAttention
