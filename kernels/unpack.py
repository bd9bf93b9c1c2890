"""6-bit integers, four in three bytes, and back (csrc/unpack.cu).

A checkpoint's integers of fewer than 8 bits lie like this (`sam_edge.models.packing`): the low bits of each, one after
the other, the lowest first.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int8, UInt8

from sam_edge.kernels.gpu import Argument, Device, DeviceArray, Source

SOURCE = Source("unpack", ("unpack_int8", "unpack_half"))
BITS, EACH, THREADS = 6, 16, 256


def pack(integers: Int8[np.ndarray, "*shape"], bits: int = BITS) -> UInt8[np.ndarray, "n"]:
    """The low `bits` bits of every integer, one after the other, lowest first; zeros fill the last byte."""
    each = np.unpackbits(integers.reshape(-1, 1).view(np.uint8), axis=1, count=bits, bitorder="little")
    return np.packbits(each.ravel(), bitorder="little")


def reference(packed: UInt8[np.ndarray, "n"], count: int, bits: int = BITS) -> Int8[np.ndarray, "count"]:
    """What `pack` was given, in two's complement of `bits` bits."""
    each = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    values = np.packbits(each, axis=1, bitorder="little")[:, 0].astype(np.int16)
    values -= (values >> (bits - 1)) << bits
    return values.astype(np.int8)


def reference_scaled(
    packed: UInt8[np.ndarray, "n"], steps: Float32[np.ndarray, "rows"], columns: int
) -> Float16[np.ndarray, "rows columns"]:
    """A matrix whose integers are multiples of their row's step, rounded once to half precision."""
    integers = reference(packed, len(steps) * columns).reshape(len(steps), columns)
    return (integers.astype(np.float32) * steps[:, None]).astype(np.float16)


def unpack(device: Device, packed: DeviceArray, count: int) -> DeviceArray:
    """The kernel: `reference`'s integers on the device.

    Raises:
        ValueError: not the bytes of `count` integers.
    """
    _check(packed, count)
    out = device.empty((count,), np.int8)
    if count:
        device.launch(SOURCE, "unpack_int8", _grid(count), THREADS, [packed, np.int64(count), out])
    return out


def unpack_scaled(device: Device, packed: DeviceArray, steps: DeviceArray, columns: int) -> DeviceArray:
    """The kernel: `reference_scaled`'s matrix on the device; `steps` are float32, one of each row.

    Raises:
        ValueError: not the bytes of so many integers.
    """
    count = steps.shape[0] * columns
    _check(packed, count)
    out = device.empty((steps.shape[0], columns), np.float16)
    if count:
        arguments: list[Argument] = [packed, np.int64(count), steps, np.int64(columns), out]
        device.launch(SOURCE, "unpack_half", _grid(count), THREADS, arguments)
    return out


def _grid(count: int) -> tuple[int, int, int]:
    return (-(-count // (EACH * THREADS)), 1, 1)


def _check(packed: DeviceArray, count: int) -> None:
    if packed.dtype != np.uint8 or packed.nbytes != -(-count * BITS // 8):
        raise ValueError(
            f"{count} integers of {BITS} bits are {-(-count * BITS // 8)} uint8, got {packed.shape} {packed.dtype}"
        )


@dataclass(frozen=True)
class Work:
    """What unpacking cannot do with less of: it computes next to nothing."""

    bytes: int
    """Packed once and unpacked once."""


def work(count: int, itemsize: int) -> Work:
    """Of `count` integers to elements of `itemsize` bytes."""
    return Work(bytes=-(-count * BITS // 8) + count * itemsize)
