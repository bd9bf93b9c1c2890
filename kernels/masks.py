"""Low-resolution logits as masks at the picture's size: bits, areas, stability scores and boxes (csrc/masks.cu).

What `sam_edge.segment.masks` computes by tiles on a CPU; on a device pixels are cheap and what goes back to the host is
dear, so every pixel is computed and only its bit leaves.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt32

from sam_edge.kernels.gpu import Argument, Device, DeviceArray, Source
from sam_edge.segment.masks import MASK_THRESHOLD, Measured
from sam_edge.segment.scaling import AxisScaling, Scaling

SOURCE = Source(
    "masks",
    ("measure_float", "measure_half", "at_points_float", "at_points_half", "count_cells_float", "count_cells_half"),
)
TYPES = {np.dtype(np.float32): "float", np.dtype(np.float16): "half"}
TAPS, COLUMNS, WARPS, WORD = 3, 128, 8, 32
"""As csrc has them; `WORD` is bits to a word."""
AREA, ABOVE, BELOW, RIGHT, LEFT, BOTTOM, TOP = range(7)
COUNTS = 8
MOST_MASKS = 65535
"""What a grid's third axis takes."""


@dataclass(frozen=True)
class Pixels:
    """K masks at the picture's size."""

    areas: Int[np.ndarray, "k"]
    measured: Measured
    bits: UInt32[np.ndarray, "k width words"] | DeviceArray
    """Down each column of pixels, lowest bit first; zeros below the picture."""


def reference(logits: Float[np.ndarray, "k h w"], scaling: Scaling, offset: float) -> Pixels:
    """The same in NumPy, one mask after the other at full size."""
    height, width = scaling.size
    count = len(logits)
    areas, boxes = np.zeros(count, np.int64), np.zeros((count, 4), np.int64)
    stability = np.zeros(count, np.float32)
    bits = np.zeros((count, width, -(-height // WORD)), np.uint32)
    for index, mask in enumerate(logits):
        full = scaling.full(mask.astype(np.float32))
        inside = full > np.float32(MASK_THRESHOLD)
        areas[index] = inside.sum()
        above, below = ((full > np.float32(MASK_THRESHOLD + move)).sum() for move in (offset, -offset))
        with np.errstate(invalid="ignore"):
            stability[index] = np.float32(np.float64(above) / np.float64(below))
        ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        boxes[index] = (xs[0], ys[0], xs[-1], ys[-1]) if len(ys) else 0
        bits[index] = packed(inside)
    return Pixels(areas, Measured(stability, boxes), bits)


def packed(mask: Bool[np.ndarray, "height width"]) -> UInt32[np.ndarray, "width words"]:
    """A mask's pixels as the kernel writes them."""
    height, width = mask.shape
    down = np.zeros((width, -(-height // WORD) * WORD), bool)
    down[:, :height] = mask.T
    return np.packbits(down, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def unpacked(bits: UInt32[np.ndarray, "width words"], height: int) -> Bool[np.ndarray, "height width"]:
    """The mask that `packed` was given, in column-major order, which is the order of COCO's run lengths."""
    parts = np.ascontiguousarray(bits.astype("<u4")).view(np.uint8)
    return np.unpackbits(parts, axis=1, count=height, bitorder="little").view(bool).T


@dataclass(frozen=True)
class DeviceScaling:
    """A `Scaling` in a device's memory."""

    arguments: tuple[Argument, ...]
    """Starts, weights, taps and length of the rows, then of the columns."""
    height: int
    width: int

    @classmethod
    def of(cls, device: Device, scaling: Scaling) -> "DeviceScaling":
        """Raises ValueError for a picture that takes more than three logits to an axis, which no SAM's does."""
        arguments = (*_axis(device, scaling.rows), *_axis(device, scaling.columns))
        return cls(arguments, scaling.rows.length, scaling.columns.length)


def _axis(device: Device, axis: AxisScaling) -> tuple[Argument, ...]:
    taps = axis.taps.shape[1]
    if taps > TAPS:
        raise ValueError(f"a pixel may depend on {TAPS} logits to an axis, got {taps}")
    weights = np.ascontiguousarray(axis.taps, np.float32)
    return device.put(axis.tap_starts.astype(np.int32)), device.put(weights), np.int32(taps), np.int32(axis.length)


def measure(
    device: Device, logits: DeviceArray, scaling: DeviceScaling, offset: float, *, with_bits: bool = True
) -> Pixels:
    """The kernel, of K x h x w logits in float32 or float16; bits stay on the device, and are none if not asked for.

    Raises:
        ValueError: logits of another type, or too many masks.
    """
    count = logits.shape[0]
    kernel = _kernel("measure", logits)
    bits = device.empty((count if with_bits else 0, scaling.width, -(-scaling.height // WORD)), np.uint32)
    if not count:
        return Pixels(np.zeros(0, np.int64), Measured(np.zeros(0, np.float32), np.zeros((0, 4), np.int64)), bits)
    counts = device.zeros((count, COUNTS), np.int32)
    thresholds = [np.float32(MASK_THRESHOLD + move) for move in (0.0, offset, -offset)]
    sizes = (np.int32(size) for size in logits.shape[1:])
    grid = (-(-scaling.width // COLUMNS), -(-scaling.height // (WORD * WARPS)), count)
    device.launch(SOURCE, kernel, grid, 32 * WARPS, [logits, *sizes, *scaling.arguments, *thresholds, counts, bits])
    found = device.get(counts).astype(np.int64)
    size = np.array([scaling.width, scaling.height])
    first = np.where(found[:, AREA, None] > 0, size - found[:, [LEFT, TOP]], 0)
    last = np.maximum(found[:, [RIGHT, BOTTOM]] - 1, 0)
    with np.errstate(invalid="ignore"):
        stability = (found[:, ABOVE] / found[:, BELOW]).astype(np.float32)
    return Pixels(found[:, AREA], Measured(stability, np.concat([first, last], 1)), bits)


def at_points(
    device: Device,
    logits: DeviceArray,
    masks: Int[np.ndarray, "k"],
    scaling: DeviceScaling,
    ys: Int[np.ndarray, "p"],
    xs: Int[np.ndarray, "p"],
) -> Float32[np.ndarray, "k p"]:
    """Logits of some masks at some pixels of the picture: `Scaling.at`, summed in the order of `Scaling.full`."""
    kernel = _kernel("at_points", logits)
    out = device.empty((len(masks), len(ys)), np.float32)
    if out.nbytes:
        indices = [device.put(np.asarray(part, np.int32)) for part in (masks, ys, xs)]
        sizes = (np.int32(size) for size in logits.shape[1:])
        arguments: list[Argument] = [
            logits,
            *sizes,
            indices[0],
            *scaling.arguments,
            *indices[1:],
            np.int32(len(ys)),
            out,
        ]
        device.launch(SOURCE, kernel, (-(-len(ys) // 256), len(masks), 1), 256, arguments)
    return device.get(out)


def count_cells(
    device: Device, logits: DeviceArray, masks: Int[np.ndarray, "k"], height: int, width: int
) -> Int[np.ndarray, "k"]:
    """Logits above the mask threshold in the upper left `height` x `width` of some masks."""
    kernel = _kernel("count_cells", logits)
    counts = device.zeros((len(masks),), np.int32)
    if len(masks):
        sizes = (np.int32(size) for size in logits.shape[1:])
        arguments: list[Argument] = [logits, *sizes, device.put(np.asarray(masks, np.int32))]
        arguments += [np.int32(height), np.int32(width), np.float32(MASK_THRESHOLD), counts]
        device.launch(SOURCE, kernel, (len(masks), 1, 1), 256, arguments)
    return device.get(counts).astype(np.int64)


def _kernel(name: str, logits: DeviceArray) -> str:
    if logits.dtype not in TYPES or len(logits.shape) != 3 or logits.shape[0] > MOST_MASKS:
        raise ValueError(
            f"logits must be K x h x w of float32 or float16 with K at most {MOST_MASKS}, got {logits.shape} "
            f"{logits.dtype}"
        )
    return f"{name}_{TYPES[logits.dtype]}"


@dataclass(frozen=True)
class Work:
    """What measuring masks cannot do with less of."""

    multiplications: int
    """Floats: three products across where a column's weights change, and three down, of each pixel."""
    bytes: int
    """Logits once and bits once."""


def work(count: int, cells: int, height: int, width: int, itemsize: int) -> Work:
    """The least that it costs to bring `count` masks of `cells` squared logits to `height` x `width` pixels.

    Rows within three pixels of a band of 32 read logits that the next band reads again, from the cache.
    """
    bits = width * -(-height // WORD) * 4
    return Work(
        multiplications=count * height * width * (TAPS * TAPS + TAPS), bytes=count * (cells**2 * itemsize + bits)
    )
