"""sam-edge's own kernels as operators of OpenVINO, which takes them from Python: attention, whatever its form.

OpenVINO calls `evaluate` of such an operator on one thread of its own, and the kernel takes as many as it is given.
GELU onto integers is left to OpenVINO, which fuses it into the layer before.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sam_edge.kernels.attention import attention, biased_attention
from sam_edge.kernels.library import level
from sam_edge.runtimes.kernels import ATTENTIONS, DOMAIN

NUMBERS: dict[str, Callable[[Any], Any]] = {"heads": int, "width": int, "scale": float, "rounded": bool}
"""Attributes of the operators, each a positive number, or 0 where an operator does not have it."""


def add_kernels(core: Any, threads: int) -> None:
    """Let a `Core` read graphs with sam-edge's attention in them; `threads` 0 is one."""
    from openvino.frontend.onnx import ConversionExtension

    for name in ATTENTIONS:
        core.add_extension(ConversionExtension(name, DOMAIN, _reader(name, max(threads, 1))))


def _reader(name: str, threads: int) -> Callable[[Any], list[Any]]:
    def read(node: Any) -> list[Any]:
        settings = {key: kind(node.get_attribute(key, 0)) for key, kind in NUMBERS.items()}
        inputs = [node.get_input(index) for index in range(node.get_input_size())]
        return _operator()(inputs, name, {**settings, "threads": threads}).outputs()

    return read


@cache
def _operator() -> type:
    """The class, which needs OpenVINO to be there."""
    from openvino import Dimension, Op, PartialShape

    class Attention(Op):
        def __init__(self, inputs: list[Any], name: str, settings: dict[str, Any]) -> None:
            super().__init__(self)
            self._name, self._settings = name, settings
            self.set_arguments(inputs)
            self.constructor_validate_and_infer_types()

        def validate_and_infer_types(self) -> None:
            positional = self._name == ATTENTIONS[0]
            batch, tokens, channels = self.get_input_partial_shape(2 if positional else 0)
            if not positional:
                channels = Dimension(channels.get_length() - 2 * self._settings["heads"] * self._settings["width"])
            self.set_output_type(0, self.get_input_element_type(0), PartialShape([batch, tokens, channels]))

        def clone_with_new_inputs(self, inputs: list[Any]) -> "Attention":
            return Attention(inputs, self._name, self._settings)

        def visit_attributes(self, visitor: Any) -> bool:
            visitor.on_attributes({key: value for key, value in self._settings.items() if key != "rounded"})
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
            given = [tensor.data for tensor in inputs]
            outputs[0].data[:] = _computed(self._name, given, **self._settings)
            return True

    return Attention


def _computed(
    name: str, given: list[np.ndarray], heads: int, width: int, scale: float, rounded: bool, threads: int
) -> np.ndarray:
    """What csrc/onnxruntime.cpp's operator of this name gives."""
    options: dict[str, Any] = {"threads": threads, "level": level(rounded=rounded)}
    tokens = given[:3] if name == ATTENTIONS[0] else given[:1]
    by_head = [x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in tokens]
    if name == ATTENTIONS[0]:
        q, k, v = by_head
        found = attention(q, k, v, given[3], given[4], scale, **options)
    else:
        q, k, v = np.split(by_head[0], [width, 2 * width], axis=-1)
        found = biased_attention(q, k, v, given[1], scale, **options)
    return found.transpose(0, 2, 1, 3).reshape(*tokens[0].shape[:2], -1)
