"""Attention over grids of tokens with decomposed relative positions (SAM's, of MViTv2, Li et al. 2022, eq. 4):

    softmax(scale q_i k_j^T + q_i rel_pos_h[row i - row j]^T + q_i rel_pos_w[column i - column j]^T) v_j

The kernel (csrc/attention_level.h) never holds a whole matrix of scores: blocks of it that fit into a core's first
caches are made, turned into weights and multiplied with the values (FlashAttention, Dao et al. 2022, alg. 1).
"""

import ctypes
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from sam_edge.kernels.library import loaded

Tokens = Float32[np.ndarray, "b heads n d"]


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
    rows, columns = query // width - key // width + height - 1, query % width - key % width + width - 1
    along_h, along_w = (
        np.take_along_axis(q @ table.T, places[None, None], -1)
        for table, places in ((rel_pos_h, rows), (rel_pos_w, columns))
    )
    return biased_reference(q, k, v, along_h + along_w, scale)


def biased_reference(
    q: Float[np.ndarray, "b heads m d"],
    k: Float[np.ndarray, "b heads n d"],
    v: Float[np.ndarray, "b heads n dv"],
    bias: Float[np.ndarray, "*b m n"],
    scale: float,
) -> Float[np.ndarray, "b heads m dv"]:
    """softmax(scale q k^T + bias) v in NumPy, in the precision of what is given."""
    scores = q @ k.swapaxes(-1, -2) * scale + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ v / weights.sum(-1, keepdims=True)


def attention(
    q: Tokens,
    k: Tokens,
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
    height, breadth = (len(rel_pos_h) + 1) // 2, (len(rel_pos_w) + 1) // 2
    tables = [(2 * side - 1, q.shape[-1]) for side in (height, breadth)]
    if not _fit(q, k, v) or q.shape[2] != height * breadth or [rel_pos_h.shape, rel_pos_w.shape] != tables:
        shapes = ", ".join(str(x.shape) for x in (q, k, v, rel_pos_h, rel_pos_w))
        raise ValueError(f"q, k, v and the tables must be of one grid of h x w tokens, got {shapes}")
    return _attend(q, k, v, (height, breadth), (rel_pos_h, rel_pos_w, None), scale, threads, level)


def biased_attention(
    q: Tokens,
    k: Tokens,
    v: Float32[np.ndarray, "b heads n dv"],
    bias: Float32[np.ndarray, "heads n n"],
    scale: float,
    *,
    threads: int = 1,
    level: str | None = None,
) -> Float32[np.ndarray, "b heads n dv"]:
    """The kernel with a bias of each pair of tokens, as TinyViT's windows have it; else as `attention`."""
    if not _fit(q, k, v) or bias.shape != (q.shape[1], q.shape[2], q.shape[2]):
        shapes = ", ".join(str(x.shape) for x in (q, k, v, bias))
        raise ValueError(f"q, k, v and the bias must be of as many heads and tokens, got {shapes}")
    return _attend(q, k, v, (1, q.shape[2]), (None, None, bias), scale, threads, level)


def _fit(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> bool:
    return k.shape == q.shape and v.shape[:3] == q.shape[:3]


def _attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    grid: tuple[int, int],
    positions: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
    scale: float,
    threads: int,
    level: str | None,
) -> np.ndarray:
    kernels, number = loaded(level)
    out = np.empty((*q.shape[:3], v.shape[-1]), np.float32)
    if out.size == 0:
        return out
    given = [_readable(x) for x in (q, k, v)]
    kept = [None if x is None else np.ascontiguousarray(x, np.float32) for x in positions]
    call = _Attention(
        *(*q.shape[:2], *grid, q.shape[-1], v.shape[-1]),
        *(_Strided.of(x) for x in given),
        *(None if x is None else x.ctypes.data for x in kept),
        _Strided.of(out),
        scale,
    )
    workspace = np.empty(kernels.sam_edge_attention_workspace(ctypes.byref(call), threads, number), np.uint8)
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
        *((name, ctypes.c_void_p) for name in ("rel_h", "rel_w", "bias")),
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
    """The least that attention over `batch` x `heads` grids costs, whoever computes it: a query's products with the
    keys and with both tables at its distances, and those of the weights with the values."""
    tokens, grids = height * width, batch * heads
    tables = (2 * height - 1 + 2 * width - 1) * qk_width
    return Work(
        multiplications=grids * tokens * (tokens * (qk_width + v_width) + (height + width) * qk_width),
        exponentials=grids * tokens**2,
        bytes=4 * (grids * tokens * (2 * qk_width + 2 * v_width) + tables),
    )
