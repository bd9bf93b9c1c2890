"""Attention with decomposed relative positions over grids of tokens (SAM's, of MViTv2, Li et al. 2022, eq. 4):

    softmax(scale q_i k_j^T + q_i rel_pos_h[row i - row j]^T + q_i rel_pos_w[column i - column j]^T) v_j

The kernel (csrc/attention_level.h) never holds a whole matrix of scores: blocks of it that fit into a core's first
caches are made, turned into weights and multiplied with the values (FlashAttention, Dao et al. 2022, alg. 1).
"""

import ctypes
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from sam_edge.errors import BackendUnavailableError
from sam_edge.kernels.library import LEVELS, library


def reference(
    q: Float[np.ndarray, "b heads n d"],
    k: Float[np.ndarray, "b heads n d"],
    v: Float[np.ndarray, "b heads n dv"],
    rel_pos_h: Float[np.ndarray, "rows d"],
    rel_pos_w: Float[np.ndarray, "columns d"],
    scale: float,
    *,
    step: int = 1,
) -> Float[np.ndarray, "b heads m dv"]:
    """The same in NumPy, in the precision of what is given, of every `step`-th query.

    Tokens are n = h x w, row after row; the tables have 2 h - 1 and 2 w - 1 rows, the least distance first.
    """
    height, width = ((len(table) + 1) // 2 for table in (rel_pos_h, rel_pos_w))
    query, key = np.arange(0, height * width, step)[:, None], np.arange(height * width)
    q = q[:, :, ::step]
    scores = q @ k.swapaxes(-1, -2) * scale
    for table, one, other, size in (
        (rel_pos_h, query // width, key // width, height),
        (rel_pos_w, query % width, key % width, width),
    ):
        scores += np.take_along_axis(q @ table.T, (one - other + size - 1)[None, None], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ v / weights.sum(-1, keepdims=True)


def attention(
    q: Float32[np.ndarray, "b heads n d"],
    k: Float32[np.ndarray, "b heads n d"],
    v: Float32[np.ndarray, "b heads n dv"],
    rel_pos_h: Float32[np.ndarray, "rows d"],
    rel_pos_w: Float32[np.ndarray, "columns d"],
    scale: float,
    *,
    threads: int = 1,
    level: str | None = None,
) -> Float32[np.ndarray, "b heads n dv"]:
    """The kernel, of tokens and tables as `reference` has them; arrays may be views whose channels lie together.

    `level` is one of `LEVELS` that the processor has; None is the best one in float32.

    Raises:
        BackendUnavailableError: no kernels here, or not this level. ValueError: shapes that do not fit together.
    """
    kernels = library()
    if kernels is None:
        raise BackendUnavailableError("there are no compiled kernels here: install a C++ compiler, then sam-edge.")
    best = kernels.sam_edge_best_level(1)
    number = kernels.sam_edge_best_level(0) if level is None else LEVELS.index(level)
    if number > best:
        raise BackendUnavailableError(f"this processor has no {level}: its kernels' level is {LEVELS[best]}.")
    batch, heads, tokens, width = q.shape
    height, breadth, v_width = (len(rel_pos_h) + 1) // 2, (len(rel_pos_w) + 1) // 2, v.shape[-1]
    tables = [(2 * height - 1, width), (2 * breadth - 1, width)]
    fits = k.shape == q.shape and v.shape[:3] == q.shape[:3] and tokens == height * breadth
    if not fits or [rel_pos_h.shape, rel_pos_w.shape] != tables:
        shapes = ", ".join(str(x.shape) for x in (q, k, v, rel_pos_h, rel_pos_w))
        raise ValueError(f"q, k, v and the tables must be of one grid of h x w tokens, got {shapes}")
    out = np.empty((batch, heads, tokens, v_width), np.float32)
    if out.size == 0:
        return out
    given = [_readable(x) for x in (q, k, v)]
    rel_pos = [np.ascontiguousarray(x, np.float32) for x in (rel_pos_h, rel_pos_w)]
    call = _Attention(
        *(batch, heads, height, breadth, width, v_width),
        *(_Strided.of(x) for x in given),
        *(x.ctypes.data for x in rel_pos),
        _Strided.of(out),
        scale,
    )
    size = kernels.sam_edge_attention_workspace(ctypes.byref(call), threads, number)
    workspace = np.empty(size, np.uint8)
    kernels.sam_edge_attention(ctypes.byref(call), threads, number, ctypes.c_void_p(workspace.ctypes.data))
    return out


def _readable(x: np.ndarray) -> np.ndarray:
    """float32 whose channels lie together."""
    x = np.asarray(x, np.float32)
    return x if x.strides[-1] == x.itemsize or x.shape[-1] == 1 else np.ascontiguousarray(x)


class _Strided(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "token")))

    @classmethod
    def of(cls, x: np.ndarray) -> "_Strided":
        return cls(x.ctypes.data, *(step // x.itemsize for step in x.strides[:3]))


class _Attention(ctypes.Structure):
    """csrc/attention.h's."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "height", "width", "qk_width", "v_width")),
        *((name, _Strided) for name in ("q", "k", "v")),
        *((name, ctypes.c_void_p) for name in ("rel_h", "rel_w")),
        ("out", _Strided),
        ("scale", ctypes.c_float),
    )


@dataclass(frozen=True)
class Work:
    """What the operator cannot do with less of."""

    multiplications: int
    """Multiplications and additions of both products, each pair one."""
    exponentials: int
    bytes: int
    """float32 in and out, each once."""


def work(batch: int, heads: int, height: int, width: int, qk_width: int, v_width: int) -> Work:
    """The least that attention over `batch` x `heads` grids costs, whoever computes it: a query's products with the keys,
    with both tables at its distances, and of the weights with the values."""
    tokens, grids = height * width, batch * heads
    tables = (2 * height - 1 + 2 * width - 1) * qk_width
    return Work(
        multiplications=grids * tokens * (tokens * (qk_width + v_width) + (height + width) * qk_width),
        exponentials=grids * tokens**2,
        bytes=4 * (grids * tokens * (2 * qk_width + 2 * v_width) + tables),
    )
