"""Small ONNX graphs for tests of types and walks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def _shape(name: str, weights: Mapping[str, np.ndarray] | None) -> Sequence[int] | None:
    """Of a weight, which nothing infers."""
    return (weights or {})[name].shape if name in (weights or {}) else None


def graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]],
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
    kind: int = TensorProto.FLOAT,
    kinds: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A graph of (operator, inputs, outputs, attributes); inputs and outputs are of `kind`, or as `kinds` says."""
    made = helper.make_graph(
        [helper.make_node(op, list(a), list(b), f"node_{b[0]}", **options) for op, a, b, options in nodes],
        "graph",
        [helper.make_tensor_value_info(name, (kinds or {}).get(name, kind), shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, (kinds or {}).get(name, kind), _shape(name, weights)) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model
