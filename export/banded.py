"""Attention with relative positions in plain ONNX operators, of which on a CPU none gives a whole N x N matrix.

In three nodes attention is N x N values per head several times over: 0.3 GB each for five heads of 4096 tokens. Here
rows are taken in bands, unrolled.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from onnxscript import ir, opset18

BAND = 128
"""Query rows at a time: 10 MB of float32 logits at five heads of 4096 tokens. More take memory, and save no time."""
LARGEST_WHOLE = 1 << 26
"""Scores that a GPU holds at a time: 128 MB in halves, of which a Jetson has some GB for everything."""
SHAPE_KEPT = "shape_kept"
"""Mark of values whose shapes are to stay in the file."""


def banded_attention(q: Any, k: Any, v: Any, rel_h: Any, rel_w: Any, whole: bool = False) -> Any:
    """Nodes of softmax(q k^T / sqrt(d) + rel_h + rel_w) v, of `ir.Value`s as `models.attention.banded_attention` takes.

    All heads at once, which is a fifth of the nodes that a head at a time would be: runtimes plan them in more than
    linear time. Positions are added, not multiplied as columns of q and k: 142 columns in place of 14, say.
    `whole` takes all rows at once, or as many as `LARGEST_WHOLE` allows: a GPU is not filled by a band, and TensorRT
    plans each anew.
    """
    heads, tokens, width = (int(size) for size in q.shape[1:])
    height, breadth = int(rel_h.shape[-1]), int(rel_w.shape[-1])
    # a name of its own in each block: buffers shared between blocks would be held from the first to the last
    batch = f"batch_{q.name}"

    def told(x: Any, *sizes: int) -> Any:
        x.shape, x.dtype = ir.Shape([batch, heads, *sizes]), v.dtype
        x.metadata_props[SHAPE_KEPT] = "yes"
        return x

    rows = told(opset18.Mul(q, _constant(np.array(width**-0.5), q.dtype)), tokens, width)
    columns = opset18.Transpose(k, perm=[0, 1, 3, 2])
    along_h = told(opset18.Unsqueeze(rel_h, _integers(4)), tokens, height, 1)
    along_w = told(opset18.Unsqueeze(rel_w, _integers(3)), tokens, 1, breadth)
    values = told(v, tokens, int(v.shape[-1]))
    rows_at_once = math.ceil(tokens / math.ceil(heads * tokens**2 / LARGEST_WHOLE)) if whole else BAND
    if rows_at_once >= tokens:
        logits = told(opset18.MatMul(rows, columns), tokens, tokens)
        positions = opset18.Reshape(opset18.Add(along_h, along_w), _integers(0, 0, 0, -1))
        return opset18.MatMul(opset18.Softmax(opset18.Add(logits, positions), axis=-1), values)
    # shared by all bands: in each anew they would outweigh small weights
    edges = [_integers(at) for at in (*range(0, tokens, rows_at_once), tokens)]
    axis, flat = _integers(2), _integers(0, 0, 0, -1)
    bands = []
    for at, (start, end) in enumerate(pairwise(edges)):
        band, band_h, band_w = (opset18.Slice(x, start, end, axis) for x in (rows, along_h, along_w))
        logits = told(opset18.MatMul(band, columns), min(rows_at_once, tokens - at * rows_at_once), tokens)
        # of two additions over the logits in place of this sum, OpenVINO makes whole matrices again
        positions = opset18.Reshape(opset18.Add(band_h, band_w), flat)
        bands.append(opset18.MatMul(opset18.Softmax(opset18.Add(logits, positions), axis=-1), values))
    return opset18.Concat(*bands, axis=2)


def _integers(*values: int) -> Any:
    return _constant(np.array(values), ir.DataType.INT64)


def _constant(values: np.ndarray, dtype: ir.DataType) -> Any:
    return opset18.Constant(value=ir.to_proto(ir.tensor(values.astype(dtype.numpy()))))
