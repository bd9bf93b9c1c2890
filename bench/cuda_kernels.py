"""`sam-edge study cuda-kernels --out DIR`: the CUDA kernels' times beside what memory allows.

Times are the device's own, between two of its events, of launches alone: their operands are there already, and what
they compile to is loaded. The bytes are those that a kernel cannot do without (`work` of each), and their share is of
the rate at which this device copies its own memory, where reading and writing both count. Attention computes for longer
than it reads, and its share says so.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sam_edge.bench.hardware import hardware, slug
from sam_edge.files import atomic_file
from sam_edge.kernels import attention_half, masks, preprocess, suppression, unpack
from sam_edge.kernels.gpu import Device
from sam_edge.kernels.launcher import Gpu
from sam_edge.segment.frame import Frame
from sam_edge.segment.scaling import Scaling

SQUARE, CELLS = 1024, 256
"""A SAM's input and its masks' side."""
COPIED_BYTES = 2**28
"""More than any cache holds."""
WARM_UP, TURNS = 3, 20


@dataclass(frozen=True)
class Case:
    """One computation of a kernel."""

    kernel: str
    sizes: str
    bytes: int
    """What it reads and writes at least."""
    call: Callable[[Device], Any]


@dataclass(frozen=True)
class Row:
    """What it took."""

    kernel: str
    sizes: str
    milliseconds: float
    """The least of some turns."""
    bytes: int
    gigabytes_per_s: float
    share_of_copy: float
    """Of the bytes a second of a copy within the device."""


class Noted:
    """A device that notes what is launched on it, so that it can be launched again."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.put, self.empty, self.zeros, self.get = gpu.put, gpu.empty, gpu.zeros, gpu.get
        self.launches: list[tuple[Any, ...]] = []

    def launch(self, *given: Any) -> None:
        """Launch, and note it."""
        self.launches.append(given)
        self._gpu.launch(*given)


def cases(scale: float = 1.0) -> list[Case]:
    """What SAMs ask for; `scale` below 1 makes the pictures, numbers and grids smaller."""
    rng = np.random.default_rng(0)

    def some(number: int) -> int:
        return max(round(number * scale), 2)

    found = []
    square, cells = some(SQUARE), some(CELLS)
    for height, width in ((some(480), some(640)), (some(3000), some(4000))):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        size = Frame.of(height, width, square).input_size
        for dtype in ("float32", "float16"):
            least = preprocess.work(height, width, size, square, np.dtype(dtype).itemsize)
            given = (picture, size, square, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), dtype)
            what = f"{height} x {width} to {square}, {dtype}"

            def prepared(d: Device, given: tuple[Any, ...] = given) -> Any:
                return preprocess.preprocess(d, *given)

            found.append(Case("preprocess", what, least.bytes, prepared))
    for height, width in ((some(480), some(640)), (some(1500), some(2250))):
        scaling = Scaling.of(Frame.of(height, width, square), cells)
        logits = rng.standard_normal((some(64), cells, cells)).astype(np.float16)
        bound = masks.work(len(logits), cells, height, width, 2)

        def measured(d: Device, logits: np.ndarray = logits, scaling: Scaling = scaling) -> Any:
            return masks.measure(d, d.put(logits), masks.DeviceScaling.of(d, scaling), 1.0)

        found.append(Case("masks", f"{len(logits)} at {height} x {width}, float16", bound.bytes, measured))
    boxes = rng.integers(0, 500, (some(3072), 4))
    boxes[:, 2:] += boxes[:, :2]
    scores = rng.random(len(boxes))
    found.append(
        Case(
            "suppression",
            f"{len(boxes)} boxes",
            suppression.work(len(boxes)).bytes,
            lambda d: suppression.suppress_boxes(d, boxes, scores, 0.7),
        )
    )
    for grids, heads, side, channels in ((1, 12, some(64), 64), (25, 12, some(14), 64), (1, 12, some(64), 14)):
        lead = (grids, heads, side * side)
        operands = [rng.standard_normal((*lead, n)).astype(np.float16) for n in (*[channels] * 3, side, side)]
        needed = attention_half.work(grids, heads, side, side, channels, channels)

        def attended(d: Device, operands: Sequence[np.ndarray] = operands) -> Any:
            q, k, v, rel_h, rel_w = (d.put(x) for x in operands)
            return attention_half.attention_half(d, q, k, v, rel_h, rel_w, 0.125)

        what = f"{grids} x {heads} heads of {channels}, {side} x {side}"
        found.append(Case("attention", what, needed.bytes, attended))
    count = some(2**24)
    packed = unpack.pack(rng.integers(-32, 32, count).astype(np.int8))
    bytes_moved = unpack.work(count, 1).bytes
    found.append(Case("unpack", f"{count} to int8", bytes_moved, lambda d: unpack.unpack(d, d.put(packed), count)))
    return found


def copy_rate(gpu: Gpu, size: int = COPIED_BYTES) -> float:
    """Bytes a second that a copy within the device reads and writes."""
    source, target = gpu.zeros((size,), np.uint8), gpu.empty((size,), np.uint8)

    def copy() -> None:
        gpu.driver.copy_across(target.address, source.address, size, gpu.stream)

    return 2 * size / least_ms(gpu, copy) * 1000


def least_ms(gpu: Gpu, work: Callable[[], object]) -> float:
    """The device's time for some work, the least of `TURNS`."""
    for _ in range(WARM_UP):
        work()
    events = [gpu.driver.event(gpu.stream)]
    for _ in range(TURNS):
        work()
        events.append(gpu.driver.event(gpu.stream))
    gpu.synchronise()
    return min(gpu.driver.milliseconds(*pair) for pair in pairwise(events))


def measure(gpu: Gpu, some: Sequence[Case], rate: float) -> list[Row]:
    """A row for each case; `rate` is the device's own, in bytes a second."""
    rows = []
    for case in some:
        noted = Noted(gpu)
        case.call(noted)

        def again(launches: Sequence[tuple[Any, ...]] = noted.launches) -> None:
            for given in launches:
                gpu.launch(*given)

        taken = least_ms(gpu, again)
        per_second = case.bytes / taken * 1000
        rows.append(Row(case.kernel, case.sizes, taken, case.bytes, per_second / 1e9, per_second / rate))
    return rows


def write(rows: Sequence[Row], file: Path) -> None:
    """A CSV of all rows."""
    with atomic_file(file) as out, out.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure, print, and write a CSV named by the hardware.

    Raises:
        BackendUnavailableError: no CUDA device, or no compiler for its kernels.
    """
    parser = argparse.ArgumentParser(prog="sam-edge study cuda-kernels", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of the CSV")
    given = parser.parse_args(arguments)
    gpu, machine = Gpu(), hardware()
    rate = copy_rate(gpu)
    rows = measure(gpu, cases(), rate)
    table = Table(title=f"{machine['gpu']}, {gpu.target}: copies {rate / 1e9:.0f} GB a second")
    for heading in ("kernel", "sizes", "ms", "MB", "GB/s", "of a copy"):
        table.add_column(heading, justify="left" if heading in ("kernel", "sizes") else "right")
    for row in rows:
        numbers = f"{row.milliseconds:.3f}", f"{row.bytes / 1e6:.1f}", f"{row.gigabytes_per_s:.0f}"
        table.add_row(row.kernel, row.sizes, *numbers, f"{row.share_of_copy:.0%}")
    Console().print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    write(rows, given.out / f"cuda-kernels_{slug(machine)}.csv")
    return rows


if __name__ == "__main__":
    main()
