"""How long a call takes, and the calls that a SAM runtime is timed by.

The timing contract:

- Clock: `time.perf_counter` around one call at a time; nothing is divided by a number of calls.
- Synchronised: where work is asynchronous (a GPU), `synchronise` runs before the clock starts and before it
  stops, so a sample holds all of its own work and none of its predecessor's.
- Phases: `pre_process` resizes, normalises and pads a picture; `encode` and `decode_*` start from arrays in host
  memory. `encode` leaves its result where the runtime puts it, so it holds the copy to the device and not a copy back;
  `decode_*` brings logits to host memory. `transfer_in` and `transfer_out` are these copies alone, of one picture's
  pixels and of one prompt's logits, where there is a device to copy to. `post_process` brings one prompt's logits to a
  mask at the picture's size. `end_to_end` starts from a uint8 picture in host memory and ends with that mask.
- Warm-up: `warmup` calls of every candidate come first and are not counted.
- Order: candidates take turns, one call each per round, in an order drawn anew for every other round and turned round
  in the next: a noisy machine disturbs all of them alike, none comes first more often than another, and no regular
  disturbance favours one.
- Length: `runs` rounds, and on until every candidate has been timed for `min_seconds`.
- Compared: a candidate's time over the first one's in the same round; the median over rounds, and an interval that
  holds 95 % of the medians of rounds drawn anew with replacement (bootstrap).
- Percentiles: linear interpolation between the nearest ranks (numpy's default) over all counted runs; nothing
  is discarded as an outlier. With few runs p99 is next to the maximum.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sam_edge.errors import BenchError
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.grid import regular_grid
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.prompts import FOREGROUND, Prompts
from sam_edge.segment.runtime import Runtime

Call = Callable[[], object]
Synchronise = Callable[[], None]

MEASUREMENTS = (
    "pre_process",
    "transfer_in",
    "encode",
    "decode_point",
    "decode_box",
    "decode_64_points",
    "transfer_out",
    "post_process",
    "end_to_end",
)
"""What is measured of a runtime, in order; transfers are of devices alone.

`encode` is one picture, already resized and padded; `decode_point`, `decode_box` and `decode_64_points` decode one
point, one box and 64 prompt sets of one point; `end_to_end` is a picture to one mask at its size, from a point.
"""


RESAMPLES = 2000
"""Times that rounds are drawn anew for an interval."""
DRAWN_AT_ONCE = 2**20
"""Values of them that are in memory together: a minute holds many short runs."""


@dataclass(frozen=True)
class Ratio:
    """A candidate's time over another's, in turn: below 1 it is the faster."""

    median: float
    low: float
    """Lower end of the interval that holds 95 % of the medians of rounds drawn anew."""
    high: float

    @classmethod
    def of(cls, samples: Sequence[float], others: Sequence[float], seed: int = 0) -> "Ratio":
        """Of samples taken in the same rounds."""
        ratios = np.asarray(samples) / np.asarray(others)
        low, high = np.percentile(_medians_drawn_anew(ratios, np.random.default_rng(seed)), (2.5, 97.5))
        return cls(float(np.median(ratios)), float(low), float(high))

    @classmethod
    def of_apart(cls, samples: Sequence[float], others: Sequence[float], seed: int = 0) -> "Ratio":
        """Of medians of samples that were taken at different times, each drawn anew by itself."""
        rng = np.random.default_rng(seed)
        new, old = (_medians_drawn_anew(np.asarray(part), rng) for part in (samples, others))
        low, high = np.percentile(new / old, (2.5, 97.5))
        return cls(float(np.median(samples) / np.median(others)), float(low), float(high))


def _medians_drawn_anew(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The median of each of `RESAMPLES` draws of as many values, with replacement."""
    rows = max(DRAWN_AT_ONCE // len(values), 1)
    parts = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concat([np.median(values[rng.integers(len(values), size=(part, len(values)))], axis=1) for part in parts])


@dataclass(frozen=True)
class Latency:
    """The time of one call, over many runs."""

    min_ms: float
    """The fastest run: what the machine can do undisturbed."""
    mean_ms: float
    """What a run takes of a long row of them: the inverse of the throughput."""
    median_ms: float
    """The middle run: the number to compare with."""
    p90_ms: float
    """Nine runs in ten are at most this long."""
    p95_ms: float
    p99_ms: float
    """Ninety-nine runs in a hundred are at most this long."""
    runs: int
    """Runs counted, without warm-up."""
    over_first: Ratio | None = None
    """Over the first of those it was timed in turn with; None of that one."""
    samples_ms: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """Every counted run, by which a later measurement is compared."""

    @property
    def per_second(self) -> float:
        """Runs in a second, one after the other."""
        return 1000 / self.mean_ms

    @classmethod
    def of(cls, samples_ms: Sequence[float], first_ms: Sequence[float] | None = None) -> "Latency":
        """Summarise one or more samples in milliseconds, beside those of the first candidate."""
        median, p90, p95, p99 = (float(value) for value in np.percentile(samples_ms, (50, 90, 95, 99)))
        ratio = None if first_ms is None else Ratio.of(samples_ms, first_ms)
        mean = float(np.mean(samples_ms))
        kept = tuple(round(float(sample), 4) for sample in samples_ms)
        return cls(float(min(samples_ms)), mean, median, p90, p95, p99, len(samples_ms), ratio, kept)


def measure_in_turn(
    calls: Mapping[str, Call],
    *,
    warmup: int = 2,
    runs: int = 10,
    min_seconds: float = 0.0,
    synchronise: Mapping[str, Synchronise] | None = None,
    before: Mapping[str, Call] | None = None,
    on_run: Callable[[], None] | None = None,
) -> dict[str, Latency]:
    """Time several candidates in turn: one call of each, in any order, then the next round.

    Args:
        calls: candidates by name.
        warmup: uncounted rounds before the first counted one.
        runs: counted rounds, at least.
        min_seconds: counted time of every candidate, at least.
        synchronise: for each candidate whose work is asynchronous, what waits for it.
        before: for each candidate that needs it, what is called before each of its calls, outside the clock.
        on_run: called after every call, outside the clock: `(warmup + runs) * len(calls)` times or more.

    Raises:
        BenchError: fewer than one run, or a negative warm-up or time.
    """
    if runs < 1 or warmup < 0:
        raise BenchError(f"runs must be at least 1 and warmup at least 0, got {runs} and {warmup}.")
    if not 0 <= min_seconds < float("inf"):
        raise BenchError(f"the time of a measurement must be at least 0 s and finite, got {min_seconds}.")
    waits = synchronise or {}
    samples_ms: dict[str, list[float]] = {name: [] for name in calls}
    names, rng = list(calls), random.Random(0)
    for turn in itertools.count():
        if turn >= warmup + runs and min(map(sum, samples_ms.values()), default=0) >= 1000 * min_seconds:
            break
        names = names[::-1] if turn % 2 else rng.sample(names, len(names))
        for name in names:
            if before and name in before:
                before[name]()
            elapsed_ms = 1000 * _seconds(calls[name], waits.get(name))
            if turn >= warmup:
                samples_ms[name].append(elapsed_ms)
            if on_run is not None:
                on_run()
    first = next(iter(samples_ms.values()), None)
    return {name: Latency.of(samples, None if samples is first else first) for name, samples in samples_ms.items()}


@dataclass(frozen=True)
class Candidate:
    """What is timed of one model in one way of running it."""

    calls: Mapping[str, Call]
    """By measurement."""
    synchronise: Synchronise | None = None
    """Waits for work on a device."""
    before: Call | None = None
    """Called before each call, outside the clock."""


def bench_candidates(
    candidates: Sequence[Candidate],
    *,
    warmup: int = 2,
    runs: int = 10,
    min_seconds: float = 0.0,
    on_run: Callable[[], None] | None = None,
) -> list[dict[str, Latency]]:
    """Time everything that each candidate can do; those that have a measurement in common take turns in it.

    `on_run` is called `warmup + runs` times for each call of each candidate, or more where `min_seconds` asks for more
    rounds.
    """
    results: list[dict[str, Latency]] = [{} for _ in candidates]
    for key in dict.fromkeys(key for candidate in candidates for key in candidate.calls):
        chosen = {str(index): one for index, one in enumerate(candidates) if key in one.calls}
        found = measure_in_turn(
            {name: one.calls[key] for name, one in chosen.items()},
            warmup=warmup,
            runs=runs,
            min_seconds=min_seconds,
            synchronise={name: one.synchronise for name, one in chosen.items() if one.synchronise is not None},
            before={name: one.before for name, one in chosen.items() if one.before is not None},
            on_run=on_run,
        )
        for name, latency in found.items():
            results[int(name)][key] = latency
    return results


def runtime_calls(runtime: Runtime, image: UInt8[np.ndarray, "h w 3"], batches: Sequence[int] = ()) -> dict[str, Call]:
    """What each of `MEASUREMENTS` calls, and `encode_N` for each N of `batches`: so many pictures at once.

    Raises:
        BenchError: a batch of less than one picture.
    """
    if any(count < 1 for count in batches):
        raise BenchError(f"a batch must be of at least 1 picture, got {', '.join(map(str, batches))}.")
    pixels, frame = to_pixels(image, runtime.config)
    embeddings = runtime.encode(pixels)
    height, width = frame.input_size
    point, box, grid = _points(height, width, 1), _box(height, width), _points(height, width, 8)
    predictor = SamPredictor(runtime)
    centre = np.array([[image.shape[1] / 2, image.shape[0] / 2]])
    single = np.ascontiguousarray(runtime.decode(embeddings, point)[0][0, :, :1])
    # what brings a mask to the picture's size is known to a predictor that has one
    drawing = SamPredictor(runtime)
    drawing.set_image(image)

    def end_to_end() -> object:
        predictor.set_image(image)
        return predictor.predict(centre, np.array([FOREGROUND]), multimask_output=False)

    calls: dict[str, Call] = {"pre_process": lambda: to_pixels(image, runtime.config)}
    copies = transfers(runtime)
    if copies is not None:
        upload, download = copies
        there = upload(single)
        calls["transfer_in"] = lambda: upload(pixels)
    calls |= {
        "encode": lambda: runtime.encode(pixels),
        "decode_point": lambda: runtime.decode(embeddings, point),
        "decode_box": lambda: runtime.decode(embeddings, box),
        "decode_64_points": lambda: runtime.decode(embeddings, grid),
    }
    if copies is not None:
        calls["transfer_out"] = lambda: download(there)
    calls |= {"post_process": lambda: drawing.masks(single), "end_to_end": end_to_end}
    for count in dict.fromkeys(batches):
        batch = np.repeat(pixels, count, 0)
        calls[f"encode_{count}"] = lambda batch=batch: runtime.encode(batch)  # type: ignore[misc]
    return calls


def transfers(runtime: Runtime) -> tuple[Callable[[np.ndarray], object], Callable[[Any], np.ndarray]] | None:
    """A runtime's own copies of an array to its device and of what lies there back; None on the CPU."""
    return getattr(runtime, "transfers", None)


def synchroniser(runtime: Runtime) -> Synchronise | None:
    """What waits for a runtime's work, where any of it may go on after a call."""
    return getattr(runtime, "synchronise", None)


def _seconds(call: Call, synchronise: Synchronise | None) -> float:
    if synchronise is None:
        start = perf_counter()
        call()
        return perf_counter() - start
    synchronise()
    start = perf_counter()
    call()
    synchronise()
    return perf_counter() - start


def _points(height: int, width: int, per_side: int) -> Prompts:
    """`per_side` squared prompt sets of one foreground point, evenly spread."""
    coords = (regular_grid(per_side) * np.array([width, height])).astype(np.float32)[None, :, None]
    return Prompts.build(coords, np.full(coords.shape[:3], FOREGROUND))


def _box(height: int, width: int) -> Prompts:
    """One box over the middle half of the picture."""
    corners = np.array([width, height, 3 * width, 3 * height], np.float32) / 4
    return Prompts.build(boxes=corners[None, None])
