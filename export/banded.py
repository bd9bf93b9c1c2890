"""Attention with relative positions as ONNX operators that never hold a whole N x N matrix.

Attention in three nodes is N x N values per head several times over: 0.3 GB each for five heads of 4096 tokens. Here
query rows are taken in bands, unrolled, since a Loop is what TensorRT's and OpenVINO's optimisers do not look into.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from onnxscript import ir, opset18

from sam_edge.models import attention

SHAPE_TOLD = "shape_told"
"""Marks values whose shapes stay in the file: behind a Reshape with a free batch ONNX Runtime does not find them, takes
the bands' sizes for different ones, and gives each memory of its own."""


# without types: of `ir.Value` the exporter's registry warns that it is none of ONNX's
def banded_attention(q, k, v, rel_h, rel_w):  # type: ignore[no-untyped-def]
    """The nodes of `sam_edge.models.attention.banded_attention`: q, k, v B x heads x N x d, positions x h and x w."""
    for value in (q, k, v, rel_h, rel_w):
        value.metadata_props[SHAPE_TOLD] = "yes"
    tokens, width = int(q.shape[2]), int(q.shape[3])
    edges = [_integers(min(at, tokens)) for at in range(0, tokens + attention.BAND, attention.BAND)]
    as_rows, axis = _integers(0, 0, 0, -1), _integers(2)
    q = opset18.Mul(q, _constant(ir.tensor(width**-0.5, q.dtype)))
    k = opset18.Transpose(k, perm=[0, 1, 3, 2])
    rel_h, rel_w = opset18.Unsqueeze(rel_h, _integers(4)), opset18.Unsqueeze(rel_w, _integers(3))
    bands = []
    for start, end in pairwise(edges):
        rows, along_h, along_w = (opset18.Slice(value, start, end, axis) for value in (q, rel_h, rel_w))
        positions = opset18.Reshape(opset18.Add(along_h, along_w), as_rows)
        weights = opset18.Softmax(opset18.Add(opset18.MatMul(rows, k), positions), axis=-1)
        bands.append(opset18.MatMul(weights, v))
    return opset18.Concat(*bands, axis=2)


def _integers(*values: int) -> Any:
    return _constant(ir.tensor(np.array(values, np.int64)))


def _constant(tensor: Any) -> Any:
    return opset18.Constant(value=ir.to_proto(tensor))
