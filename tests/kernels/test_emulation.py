"""kernels/emulation.h: CUDA on the CPU does what CUDA says, and reports what would hang or be undefined there."""

import ctypes

import numpy as np
import pytest

from sam_edge.kernels.gpu import CSRC
from tests.kernels.emulated import (
    COMPILER,
    FALLING,
    RISING,
    SANITIZED,
    SHUFFLED,
    Emulation,
    EmulationError,
    library,
    run,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
ORDERS = pytest.mark.parametrize("order", [RISING, FALLING, SHUFFLED, SHUFFLED + 1], ids=str)
KERNELS = """
#include "device.cuh"

extern "C" __global__ void indices(unsigned *out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += block << 16 | threadIdx.z << 12 | threadIdx.y << 8 |
                                                                threadIdx.x;
}

// the block's numbers in reverse, through shared memory
template <bool BARRIER> __device__ void reversed(const int *in, int *out) {
  __shared__ int numbers[1024];
  numbers[threadIdx.x] = in[threadIdx.x];
  if (BARRIER) __syncthreads();
  out[threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
  if (BARRIER) __syncthreads();
  numbers[threadIdx.x] = -1;
}
extern "C" __global__ void reverse(const int *in, int *out) { reversed<true>(in, out); }
extern "C" __global__ void reverse_without_barrier(const int *in, int *out) { reversed<false>(in, out); }

extern "C" __global__ void dynamic(const int *in, int *out, int length) {
  DYNAMIC_SHARED(int, numbers);
  for (int i = threadIdx.x; i < length; i += blockDim.x) numbers[i] = in[i];
  __syncthreads();
  for (int i = threadIdx.x; i < length; i += blockDim.x) out[i] = numbers[length - 1 - i];
}

extern "C" __global__ void collectives(const int *in, int *out) {
  const int lane = threadIdx.x % 32, value = in[threadIdx.x];
  int *mine = out + threadIdx.x * 8;
  mine[0] = __shfl_sync(~0u, value, lane / 2);
  mine[1] = __shfl_xor_sync(~0u, value, 5);
  mine[2] = __shfl_down_sync(~0u, value, 3);
  mine[3] = __shfl_up_sync(~0u, value, 7);
  mine[4] = int(__ballot_sync(~0u, value & 1));
  mine[5] = __any_sync(~0u, value == 77) + 2 * __all_sync(~0u, value >= 0);
  // each half of the warp by itself
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  int sum = value;
  for (int across = 8; across > 0; across /= 2) sum += __shfl_xor_sync(half, sum, across);
  mine[6] = sum;
  mine[7] = int(__shfl_sync(~0u, (long long)value << 33, 9) >> 33) + __syncthreads_or(value == 500);
}

extern "C" __global__ void atomics(int *out, const int *in) {
  atomicAdd(out, in[threadIdx.x]);
  atomicMax(out + 1, in[threadIdx.x]);
  atomicMin(out + 2, in[threadIdx.x]);
  atomicOr(out + 3, 1 << threadIdx.x % 31);
  atomicCAS(out + 4, 0, 7);
}

extern "C" __global__ void bits(const unsigned *in, int *out) {
  const unsigned x = in[threadIdx.x];
  int *mine = out + threadIdx.x * 4;
  mine[0] = __popc(x);
  mine[1] = __ffs(int(x));
  mine[2] = __clz(int(x));
  mine[3] = __popcll((unsigned long long)x << 20 | x);
}

extern "C" __global__ void halves(const float *in, unsigned short *out, float *back, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    out[i] = float_to_half(in[i]);
    back[i] = half_to_float(static_cast<unsigned short>(i));
  }
}

// d = c + a b: a 16 x 16, b 16 x 8 and c in rows, by fragments as the PTX ISA lays them out
extern "C" __global__ void product(const unsigned short *a, const unsigned short *b, const float *c, float *d) {
  const int lane = threadIdx.x, group = lane / 4, place = lane % 4;
  const auto pair = [](const unsigned short *at, int step) { return at[0] | unsigned(at[step]) << 16; };
  unsigned fragments[4];
  for (int i = 0; i < 4; ++i) fragments[i] = pair(a + (group + i % 2 * 8) * 16 + i / 2 * 8 + place * 2, 1);
  const unsigned b0 = pair(b + place * 2 * 8 + group, 8), b1 = pair(b + (place * 2 + 8) * 8 + group, 8);
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[(group + i / 2 * 8) * 8 + place * 2 + i % 2];
  multiply_add(sums, fragments, b0, b1);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + place * 2 + i % 2] = sums[i];
}

// four matrices of 8 x 8, one below the other
extern "C" __global__ void matrices(const unsigned short *in, unsigned *out, int transposed) {
  DYNAMIC_SHARED(uint4, memory);
  unsigned short *rows = reinterpret_cast<unsigned short *>(memory);
  for (int i = 0; i < 8; ++i) rows[threadIdx.x * 8 + i] = in[threadIdx.x * 8 + i];
  __syncthreads();
  unsigned found[4];
  load_matrices(found, rows + threadIdx.x * 8, transposed != 0);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = found[i];
}

extern "C" __global__ void some_at_the_barrier(int *out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}
extern "C" __global__ void two_collectives(int *out) {
  out[threadIdx.x] = threadIdx.x < 3 ? __any_sync(~0u, 1) : __shfl_sync(~0u, 1, 0);
}
extern "C" __global__ void absent_lanes(int *out) {
  if (threadIdx.x >= 8) out[threadIdx.x] = __shfl_sync(~0u, 1, 0);
}
extern "C" __global__ void foreign_lane(int *out) {
  if (threadIdx.x >= 8) out[threadIdx.x] = __shfl_sync(~0xffu, 1, 3);
}
extern "C" __global__ void foreign_mask(int *out) { out[threadIdx.x] = __any_sync(0xff00u, 1); }
extern "C" __global__ void row_between(unsigned *out) {
  DYNAMIC_SHARED(uint4, memory);
  unsigned found[4];
  load_matrices(found, reinterpret_cast<unsigned short *>(memory) + threadIdx.x * 8 + 1, false);
  out[threadIdx.x] = found[0];
}
extern "C" __global__ void beside(int *out) { out[threadIdx.x + 1] = 1; }
"""
NAMES = (
    *(
        "indices",
        "reverse",
        "reverse_without_barrier",
        "dynamic",
        "collectives",
        "atomics",
        "bits",
        "halves",
        "product",
    ),
    *("matrices", "some_at_the_barrier", "two_collectives", "absent_lanes", "foreign_lane", "foreign_mask"),
    *("row_between", "beside"),
)


@pytest.fixture(
    scope="module",
    params=["", pytest.param("#define EMULATION_PORTABLE\n", marks=pytest.mark.slow)],
    ids=["", "as on other processors"],
)
def kernels(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return library(request.param + KERNELS + "".join(f"EMULATED({name})\n" for name in NAMES), CSRC)


@ORDERS
def test_every_thread_of_every_block_runs_once(order: int, kernels: ctypes.CDLL) -> None:
    device = Emulation()
    out = device.zeros((3, 2, 2, 2, 3, 5), np.uint32)
    run(kernels, "indices", (2, 2, 3), (5, 3, 2), [out], order=order)
    blocks = np.arange(12, dtype=np.uint32).reshape(3, 2, 2, 1, 1, 1) << 16
    z, y, x = np.ogrid[:2, :3, :5]
    np.testing.assert_array_equal(device.get(out), blocks | (z << 12 | y << 8 | x).astype(np.uint32))


@ORDERS
@pytest.mark.parametrize("threads", [1, 31, 64, 100, 1024])
def test_threads_meet_at_barriers(threads: int, order: int, kernels: ctypes.CDLL) -> None:
    device, numbers = Emulation(), np.arange(threads, dtype=np.int32)
    out = device.empty((threads,), np.int32)
    run(kernels, "reverse", (2, 1, 1), threads, [device.put(numbers), out], order=order)
    np.testing.assert_array_equal(device.get(out), numbers[::-1])
    run(kernels, "dynamic", (1, 1, 1), threads, [device.put(numbers), out, np.int32(threads)], 4 * threads, order)
    np.testing.assert_array_equal(device.get(out), numbers[::-1])


def test_without_a_barrier_the_result_depends_on_the_order(kernels: ctypes.CDLL) -> None:
    device, numbers = Emulation(), np.arange(1, 65, dtype=np.int32)
    found = []
    for order in (RISING, FALLING):
        out = device.empty((64,), np.int32)
        run(kernels, "reverse_without_barrier", (1, 1, 1), 64, [device.put(numbers), out], order=order)
        found.append(device.get(out).tolist())
    assert found[0] != found[1]


@ORDERS
def test_lanes_of_a_warp_exchange_what_they_have(order: int, kernels: ctypes.CDLL) -> None:
    values = np.random.default_rng(3).integers(0, 1000, 96).astype(np.int32)
    values[70] = 500
    device = Emulation()
    out = device.empty((96, 8), np.int32)
    run(kernels, "collectives", (1, 1, 1), 96, [device.put(values), out], order=order)
    lanes, warps = np.arange(32), values.reshape(3, 32)
    wanted = np.empty((3, 32, 8), np.int64)
    wanted[..., 0] = warps[:, lanes // 2]
    wanted[..., 1] = warps[:, lanes ^ 5]
    wanted[..., 2] = warps[:, np.where(lanes + 3 < 32, lanes + 3, lanes)]
    wanted[..., 3] = warps[:, np.where(lanes >= 7, lanes - 7, lanes)]
    wanted[..., 4] = ((warps & 1).astype(np.uint32) << lanes.astype(np.uint32)).sum(1)[:, None].astype(np.int32)
    wanted[..., 5] = ((warps == 77).any(1) + 2 * (warps >= 0).all(1))[:, None]
    wanted[..., 6] = warps.reshape(3, 2, 16).sum(2).repeat(16, 1)
    wanted[..., 7] = warps[:, 9:10] + 1
    np.testing.assert_array_equal(device.get(out), wanted.reshape(96, 8))


@ORDERS
def test_atomics_lose_nothing(order: int, kernels: ctypes.CDLL) -> None:
    device, values = Emulation(), np.random.default_rng(0).integers(-99, 99, 80).astype(np.int32)
    out = device.zeros((5,), np.int32)
    run(kernels, "atomics", (3, 1, 1), 80, [out, device.put(values)], order=order)
    assert device.get(out).tolist() == [3 * values.sum(), values.max(), values.min(), 2**31 - 1, 7]


def test_bits_are_counted_as_by_the_gpu(kernels: ctypes.CDLL) -> None:
    values = np.array([0, 1, 2, 0x80000000, 0xFFFFFFFF, 0x00F0], np.uint32)
    device = Emulation()
    out = device.empty((6, 4), np.int32)
    run(kernels, "bits", (1, 1, 1), 6, [device.put(values), out])
    for value, row in zip(values.tolist(), device.get(out).tolist(), strict=True):
        first = (value & -value).bit_length()
        assert row == [value.bit_count(), first, 32 - value.bit_length(), (value << 20 | value).bit_count()]


def test_halves_are_ieees_in_both_directions(kernels: ctypes.CDLL) -> None:
    """All 65536 of them, and floats at, beside and between them, subnormal and too large ones."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = np.sort(every[np.isfinite(every)].astype(np.float32))
    between = (finite[1:] + finite[:-1]) / 2
    floats = np.concat([finite, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)])
    floats = np.concat([floats, np.float32([np.nan, np.inf, -np.inf, 65519.99, 65520, 1e30, -1e30, 1e-40])])
    device = Emulation()
    bits, back = device.empty(floats.shape, np.uint16), device.empty(floats.shape, np.float32)
    run(kernels, "halves", (1, 1, 1), 64, [device.put(floats), bits, back, np.int32(len(floats))])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(device.get(bits).view(np.float16), floats.astype(np.float16))
    np.testing.assert_array_equal(device.get(back)[:65536], every.astype(np.float32))


@ORDERS
def test_matrices_multiply_by_the_fragments_of_tensor_cores(order: int, kernels: ctypes.CDLL) -> None:
    rng, device = np.random.default_rng(1), Emulation()
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 8)).astype(np.float16)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    out = device.empty((16, 8), np.float32)
    run(kernels, "product", (1, 1, 1), 32, [*map(device.put, (a, b, c)), out], order=order)
    np.testing.assert_allclose(device.get(out), c + a.astype(float) @ b.astype(float), atol=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrices_are_loaded_by_the_fragments_of_tensor_cores(transposed: int, kernels: ctypes.CDLL) -> None:
    device, rows = Emulation(), np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    out = device.empty((32, 4), np.uint32)
    run(kernels, "matrices", (1, 1, 1), 32, [device.put(rows), out, np.int32(transposed)], 512, SHUFFLED)
    found = device.get(out).view(np.uint16).reshape(8, 4, 4, 2).transpose(2, 0, 1, 3).reshape(4, 8, 8)
    np.testing.assert_array_equal(found, rows.swapaxes(1, 2) if transposed else rows)


@ORDERS
@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        ("some_at_the_barrier", "40 threads wait for others that never come, in __syncthreads; 24 have ended"),
        ("two_collectives", "lanes of a warp meet in .*_sync and in .*_sync"),
        ("absent_lanes", "24 threads wait .* in __shfl_sync"),
        ("foreign_lane", "__shfl_sync reads lane 3, outside of its mask"),
        ("foreign_mask", "lane .* is not in its own mask"),
        ("row_between", "not aligned to 16 bytes"),
        pytest.param(
            "beside",
            "beside writes beside an array",
            marks=pytest.mark.skipif(SANITIZED, reason="the sanitizer sees it, and ends the process"),
        ),
    ],
)
def test_what_hangs_or_is_undefined_on_a_gpu_is_reported(
    kernel: str, says: str, order: int, kernels: ctypes.CDLL
) -> None:
    device, threads = Emulation(), 64 if kernel == "some_at_the_barrier" else 32
    with pytest.raises(EmulationError, match=says):
        run(kernels, kernel, (1, 1, 1), threads, [device.empty((threads,), np.int32)], 2048, order)
    # and the next launch is as good as the first
    out = device.empty((32,), np.int32)
    run(kernels, "reverse", (1, 1, 1), 32, [device.put(np.arange(32, dtype=np.int32)), out], order=order)
    assert device.get(out)[0] == 31


@pytest.mark.parametrize(
    ("grid", "block"), [((0, 1, 1), 32), ((1, 65536, 1), 32), ((1, 1, 1), 1025)], ids=["empty", "high", "crowded"]
)
def test_launches_that_cuda_refuses_are_refused(grid: tuple[int, int, int], block: int, kernels: ctypes.CDLL) -> None:
    with pytest.raises(EmulationError, match="a launch of no block"):
        run(kernels, "beside", grid, block, [Emulation().empty((9999,), np.int32)])


def test_parameters_of_other_sizes_are_refused(kernels: ctypes.CDLL) -> None:
    out = Emulation().empty((4,), np.int32)
    with pytest.raises(EmulationError, match=r"dynamic has parameters of \[8, 8, 4\] bytes, got \[8, 8, 8\]"):
        run(kernels, "dynamic", (1, 1, 1), 1, [out, out, np.int64(4)])
    with pytest.raises(EmulationError, match="there is no kernel another"):
        run(kernels, "another", (1, 1, 1), 1, [out])
