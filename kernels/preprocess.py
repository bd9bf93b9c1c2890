"""From a picture to a model's input: Pillow's bilinear resizing, normalised and padded (csrc/preprocess.cu).

Pillow (Resample.c, `ImagingResample`) resizes bytes across, then down, or for tall pictures down first. An output pixel
is a sum over a triangle as wide as the picture is reduced, its weights rounded to multiples of 2^-22 and the sum to a
byte, after either pass.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image

from sam_edge.kernels.gpu import Argument, Device, DeviceArray, Source

SOURCE = Source("preprocess", ("preprocess_float", "preprocess_half"))
KERNELS = {"float32": "preprocess_float", "float16": "preprocess_half"}
SHIFT = 22
ROWS, THREADS = 8, 128
"""Rows of a thread, as csrc has them, and threads of a block."""


@dataclass(frozen=True)
class Resampling:
    """One axis: what each output pixel takes from the picture, in 2^-22."""

    starts: Int32[np.ndarray, "length"]
    counts: Int32[np.ndarray, "length"]
    weights: Int32[np.ndarray, "length taps"]
    """Those behind a pixel's count are zeros."""

    @classmethod
    def of(cls, size: int, length: int) -> "Resampling":
        """`size` pixels to `length`, in Pillow's arithmetic (`precompute_coeffs`, `normalize_coeffs_8bpc`)."""
        scale = size / length
        support = max(scale, 1.0)
        centers = (np.arange(length) + 0.5) * scale
        starts = np.maximum((centers - support + 0.5).astype(np.int64), 0)
        ends = np.minimum((centers + support + 0.5).astype(np.int64), size)
        counts = ends - starts
        taps = np.arange(int(np.ceil(support)) * 2 + 1)
        distance = np.abs((taps + starts[:, None] - centers[:, None] + 0.5) * (1.0 / support))
        weights = np.where((taps < counts[:, None]) & (distance < 1), 1 - distance, 0.0)
        total = np.zeros(length)
        # one after the other, as Pillow adds them up
        for tap in taps:
            total += weights[:, tap]
        weights *= np.where(total != 0, 1 / total, 1.0)[:, None]
        # half up and cut: no weight of a triangle is negative
        whole = (0.5 + weights * (1 << SHIFT)).astype(np.int32)
        return cls(starts.astype(np.int32), counts.astype(np.int32), whole)

    def applied(self, pixels: UInt8[np.ndarray, "size *rest"]) -> UInt8[np.ndarray, "length *rest"]:
        """Along the first axis."""
        found = np.full((len(self.starts), *pixels.shape[1:]), 1 << (SHIFT - 1), np.int32)
        spread = (slice(None), *[None] * (pixels.ndim - 1))
        for tap in range(self.weights.shape[1]):
            # beyond a pixel's count the weight is zero, whatever it meets
            here = pixels[np.minimum(self.starts + tap, len(pixels) - 1)].astype(np.int32)
            found += self.weights[:, tap][spread] * here
        return np.clip(found >> SHIFT, 0, 255).astype(np.uint8)


def down_first(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether the Pillow that is installed resizes down before across.

    From 13 on it does where the height loses more than twice what the width loses; versions 12 of after 12.0 where a
    picture is more than a hundred times as high as wide; older ones never.
    """
    if _is_seen_to(9, 9, (3, 8)):
        return height > size[0] and height - size[0] > 2 * (width - size[1])
    return height > 100 * width and height > size[0] and _is_seen_to(250, 2, (3, 9))


@cache
def _is_seen_to(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether Pillow goes down first with a picture of this size."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    found = np.asarray(Image.fromarray(noise).resize(size[::-1], Image.Resampling.BILINEAR))
    return np.array_equal(found, _resized(noise, size, down_first=True))


def _resized(
    picture: UInt8[np.ndarray, "h w *colours"], size: tuple[int, int], *, down_first: bool
) -> UInt8[np.ndarray, "rows columns *colours"]:
    down, across = (Resampling.of(*axis) for axis in zip(picture.shape[:2], size, strict=True))
    if down_first:
        return across.applied(down.applied(picture).swapaxes(0, 1)).swapaxes(0, 1)
    return down.applied(across.applied(picture.swapaxes(0, 1)).swapaxes(0, 1))


def reference(
    picture: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    square: int,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    dtype: str = "float32",
) -> Float[np.ndarray, "1 3 s s"]:
    """The same in NumPy: a picture resized to `size` (height, width), in the upper left of a `square`.

    `mean` and `deviation` are of pixels in 0..255; `dtype` is float32 or float16, to which float32 is rounded last.
    """
    resized = _resized(picture, size, down_first=down_first(picture.shape[0], picture.shape[1], size))
    values = (resized.astype(np.float32) - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    padded = np.zeros((1, 3, square, square), dtype)
    padded[0, :, : size[0], : size[1]] = values.transpose(2, 0, 1)
    return padded


def preprocess(
    device: Device,
    picture: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    square: int,
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    dtype: str = "float32",
) -> DeviceArray:
    """The kernel: 1 x 3 x `square` x `square` on the device, bit for bit the reference's.

    Raises:
        ValueError: no H x W x 3 bytes, a size that does not fit into the square, or another dtype.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise ValueError(f"a picture must be H x W x 3 uint8, got {picture.shape} {picture.dtype}")
    if dtype not in KERNELS or not all(0 < side <= square for side in size):
        raise ValueError(f"size must lie within {square} and dtype be float32 or float16, got {size} and {dtype}")
    axes = [Resampling.of(length, side) for length, side in zip(picture.shape[1::-1], size[::-1], strict=True)]
    out = device.empty((1, 3, square, square), dtype)
    tables: list[Argument] = []
    for axis in axes:
        tables += [device.put(part) for part in (axis.starts, axis.counts, axis.weights)]
        tables += [np.int32(axis.weights.shape[1]), np.int32(len(axis.starts))]
    scale = device.put(np.array([*mean, *deviation], np.float32))
    order = np.int32(down_first(picture.shape[0], picture.shape[1], size))
    device.launch(
        SOURCE,
        KERNELS[dtype],
        (-(-square // THREADS), -(-square // ROWS), 1),
        THREADS,
        [device.put(picture), np.int32(picture.shape[1]), *tables, scale, order, np.int32(square), out],
    )
    return out


@dataclass(frozen=True)
class Work:
    """What pre-processing cannot do with less of."""

    multiplications: int
    """Of whole numbers: every tap of both passes, the first of which makes each row or column once."""
    bytes: int
    """The picture once, its input once; the tables of weights are small beside them."""


def work(height: int, width: int, size: tuple[int, int], square: int, itemsize: int) -> Work:
    """The least that it costs to bring `height` x `width` pixels to `size` in a `square` of `itemsize` bytes each.

    The kernel makes rows near a thread's first and last pixel twice, and where it goes down first every column as often
    as pixels need it.
    """
    across, down = Resampling.of(width, size[1]), Resampling.of(height, size[0])
    if down_first(height, width, size):
        taps = width * int(down.counts.sum()) + size[0] * int(across.counts.sum())
    else:
        taps = height * int(across.counts.sum()) + size[1] * int(down.counts.sum())
    return Work(multiplications=3 * taps, bytes=3 * (height * width + square**2 * itemsize))
