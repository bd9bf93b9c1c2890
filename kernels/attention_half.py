"""Attention with decomposed relative positions on a GPU's tensor cores (csrc/attention.cu).

    softmax(scale q_i k_j^T + rel_h[i, row j] + rel_w[i, column j]) v_j

where rel_h and rel_w are the queries' products with the tables of positions, taken by row and by column of the key.
FlashAttention-2 (Dao 2023, alg. 1): blocks of scores are made, turned into weights and multiplied with the values in
registers, in half precision with sums in float32.
"""

import numpy as np
from jaxtyping import Float

from sam_edge.kernels.attention import Work, biased_reference
from sam_edge.kernels.gpu import Device, DeviceArray, Source

WIDTHS = (16, 32, 48, 64, 80)
"""Channels of a head that csrc/attention.cu is compiled for; others are filled up with zeros."""
SOURCES = {width: Source("attention", (f"attention_{width}",), (f"HEAD_WIDTH={width}",)) for width in WIDTHS}
QUERIES = KEYS = 64
PAD, WARPS = 8, 4
"""As csrc has them."""
MOST_SHARED_BYTES = 48 << 10
"""Shared memory that a block has without asking, on every GPU."""
LOG2_E = 1.44269504


def reference(
    q: Float[np.ndarray, "b heads n d"],
    k: Float[np.ndarray, "b heads n d"],
    v: Float[np.ndarray, "b heads n dv"],
    rel_h: Float[np.ndarray, "b heads n h"],
    rel_w: Float[np.ndarray, "b heads n w"],
    scale: float,
) -> Float[np.ndarray, "b heads n dv"]:
    """The same in NumPy, in the precision of what is given; tokens are n = h x w, row after row."""
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).reshape(*rel_h.shape[:3], -1)
    return biased_reference(q, k, v, bias, scale)


def attention_half(
    device: Device,
    q: DeviceArray,
    k: DeviceArray,
    v: DeviceArray,
    rel_h: DeviceArray,
    rel_w: DeviceArray,
    scale: float,
) -> DeviceArray:
    """The CUDA kernel, in half precision with sums in float32: the reference's shapes, all of float16 in rows.

    Weights are rounded to half before they meet the values, so a result is off by a few 2^-11 of the largest value.

    Raises:
        ValueError: other types, shapes that do not fit together, heads wider than 80 channels, or a grid whose tables
            do not fit into a block's shared memory (`shared_bytes`).
    """
    arrays = (q, k, v, rel_h, rel_w)
    batch, heads, tokens, qk_width = q.shape
    height, width, v_width = rel_h.shape[-1], rel_w.shape[-1], v.shape[-1]
    lead = (batch, heads, tokens)
    fits = k.shape == q.shape and all(x.shape[:3] == lead for x in arrays) and tokens == height * width
    if not fits or any(x.dtype != np.float16 for x in arrays):
        shapes = ", ".join(f"{x.shape} {x.dtype}" for x in arrays)
        raise ValueError(f"q, k, v, rel_h and rel_w must be float16 of one grid of h x w tokens, got {shapes}")
    compiled = next((most for most in WIDTHS if max(qk_width, v_width) <= most), None)
    if compiled is None:
        raise ValueError(f"a head may have {WIDTHS[-1]} channels, got {max(qk_width, v_width)}")
    shared = shared_bytes(compiled, height, width)
    if shared > MOST_SHARED_BYTES or batch * heads > 65535:
        raise ValueError(
            f"{batch * heads} grids of {height} x {width} tokens take {shared} bytes of shared memory; at most 65535 "
            f"and {MOST_SHARED_BYTES} are allowed"
        )
    out = device.empty((*lead, v_width), np.float16)
    if not out.nbytes:
        return out
    steps = [
        np.int64(step) for x in (q, k, v) for step in (heads * tokens * x.shape[3], tokens * x.shape[3], x.shape[3])
    ]
    sizes = [np.int32(size) for size in (heads, height, width, qk_width, v_width)]
    device.launch(
        SOURCES[compiled],
        f"attention_{compiled}",
        (-(-tokens // QUERIES), batch * heads, 1),
        32 * WARPS,
        [*arrays, *steps, *sizes, np.float32(scale * LOG2_E), out],
        shared,
    )
    return out


def shared_bytes(compiled: int, height: int, width: int) -> int:
    """Shared memory of a block: keys, values, its queries' relative positions, and where each key lies in the grid."""
    tables = sum(((length + 1) // 2 | 1) * 2 for length in (height, width))
    return 2 * (2 * KEYS * (compiled + PAD) + QUERIES * tables) + 4 * KEYS


def work(batch: int, heads: int, height: int, width: int, qk_width: int, v_width: int) -> Work:
    """The least that it costs over `batch` x `heads` grids, with halves in and out.

    The kernel reads keys and values again for every 64 queries, from the cache of the GPU.
    """
    tokens, grids = height * width, batch * heads
    return Work(
        multiplications=grids * tokens**2 * (qk_width + v_width),
        exponentials=grids * tokens**2,
        bytes=2 * grids * tokens * (2 * qk_width + 2 * v_width + height + width),
    )
