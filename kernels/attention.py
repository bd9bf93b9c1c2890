"""Attention with decomposed relative positions: softmax(scale q k^T + rel_h + rel_w) v over grids of tokens.

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
    q: Float[np.ndarray, "b heads m d"],
    k: Float[np.ndarray, "b heads n d"],
    v: Float[np.ndarray, "b heads n dv"],
    rel_h: Float[np.ndarray, "b heads m h"],
    rel_w: Float[np.ndarray, "b heads m w"],
    scale: float,
) -> Float[np.ndarray, "b heads m dv"]:
    """The same in NumPy, in the precision of what is given, of all queries or of some."""
    scores = q @ k.swapaxes(-1, -2) * scale
    scores += (rel_h[..., :, None] + rel_w[..., None, :]).reshape(scores.shape)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ v / weights.sum(-1, keepdims=True)


def attention(
    q: Float32[np.ndarray, "b heads n d"],
    k: Float32[np.ndarray, "b heads n d"],
    v: Float32[np.ndarray, "b heads n dv"],
    rel_h: Float32[np.ndarray, "b heads n h"],
    rel_w: Float32[np.ndarray, "b heads n w"],
    scale: float,
    *,
    threads: int = 1,
    level: str | None = None,
) -> Float32[np.ndarray, "b heads n dv"]:
    """The kernel, of n = h x w tokens in rows; arrays may be views whose channels lie together.

    `level` is one of `LEVELS`, no higher than the processor's own; None is that.

    Raises:
        BackendUnavailableError: no kernels here, or not this level. ValueError: shapes that do not fit together.
    """
    kernels = library()
    if kernels is None:
        raise BackendUnavailableError("there are no compiled kernels here: install a C++ compiler, then sam-edge.")
    best = kernels.sam_edge_best_level()
    number = best if level is None else LEVELS.index(level)
    if number > best:
        raise BackendUnavailableError(f"this processor has no {level}: its kernels' level is {LEVELS[best]}.")
    batch, heads, tokens, width = q.shape
    height, breadth, v_width = rel_h.shape[-1], rel_w.shape[-1], v.shape[-1]
    lead = (batch, heads, tokens)
    if k.shape != q.shape or any(x.shape[:3] != lead for x in (v, rel_h, rel_w)) or tokens != height * breadth:
        shapes = ", ".join(str(x.shape) for x in (q, k, v, rel_h, rel_w))
        raise ValueError(f"q, k, v, rel_h and rel_w must be of one grid of h x w tokens, got {shapes}")
    out = np.empty((*lead, v_width), np.float32)
    if out.size == 0:
        return out
    given = [_readable(x) for x in (q, k, v, rel_h, rel_w)]
    call = _Attention(
        batch, heads, height, breadth, width, v_width, *(_Strided.of(x) for x in (*given, out)), ctypes.c_float(scale)
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
        *((name, _Strided) for name in ("q", "k", "v", "rel_h", "rel_w", "out")),
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
    """The least that attention over `batch` x `heads` grids costs, whoever computes it."""
    tokens, grids = height * width, batch * heads
    return Work(
        multiplications=grids * tokens**2 * (qk_width + v_width),
        exponentials=grids * tokens**2,
        bytes=4 * grids * tokens * (2 * qk_width + 2 * v_width + height + width),
    )
