"""The race of everything mode: segment-anything's own generator, ours, and ours on other runtimes, in turn.

The same weights and settings, the same photos, one run: on every photo each contender generates once, one after the
other, so that a noisy machine disturbs all of them alike. Speed-ups are medians over photos of the ratio on a photo.
Encoding is the image encoder alone; decoding is all the rest, resizing and post-processing included. Processor time, of
all threads, is beside the clock's: where neighbours take the cores, it is the fairer of the two on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from rich.markup import escape
from rich.table import Table

from sam_edge.bench import units
from sam_edge.bench.latency import synchroniser
from sam_edge.bench.provenance import write_lines
from sam_edge.errors import BenchError
from sam_edge.segment.config import Thresholds
from sam_edge.segment.everything import EverythingGenerator, Strategy
from sam_edge.segment.matching import agreement
from sam_edge.segment.observed import ObservedRuntime
from sam_edge.segment.runtime import Runtime

Picture = UInt8[np.ndarray, "h w 3"]
Records = list[dict[str, Any]]
Score = Callable[[int, Records], list[float]]
"""IoU of each labelled mask of photo number i with the record that matches it best."""

REFERENCE = "segment-anything"
WARM_UP_POINTS = 2
"""Points per side of the one uncounted run."""


@dataclass(frozen=True)
class RaceOptions:
    """What all contenders are set to."""

    thresholds: Thresholds
    """Filters and tau."""
    points_per_side: int = 32
    """Points along each side of the grid."""

    def generator_options(self) -> dict[str, Any]:
        """The arguments that segment-anything's generator and ours share."""
        return {
            "pred_iou_thresh": self.thresholds.pred_iou,
            "stability_score_thresh": self.thresholds.stability,
            "output_mode": "coco_rle",
        }


@dataclass(frozen=True)
class Lap:
    """One contender on one photo."""

    whole_s: float
    """From the uint8 picture to the records."""
    cpu_s: float
    """Processor time of all threads meanwhile."""
    encode_s: float
    """Within the image encoder."""
    decoder_calls: int
    """Batches of prompts."""
    points: int
    """Prompts asked."""
    records: int
    """Masks found."""
    agreement: float
    """IoU of best matches with segment-anything's records, both ways."""
    ious: tuple[float, ...] = ()
    """Of each labelled mask with the record that matches it best."""

    @property
    def decode_s(self) -> float:
        """All but the image encoder."""
        return self.whole_s - self.encode_s


@runtime_checkable
class Contender(Protocol):
    """Somebody's everything mode."""

    def warm_up(self, image: Picture) -> None:
        """One short run that is not counted."""
        ...

    def run(self, image: Picture) -> tuple[Records, dict[str, Any]]:
        """Records, and `encode_s`, `decoder_calls` and `points` of the run."""
        ...


class Ours:
    """`EverythingGenerator` with one strategy, on one runtime."""

    def __init__(self, runtime: Runtime, strategy: Strategy, options: RaceOptions) -> None:
        self._runtime = ObservedRuntime(runtime, synchroniser(runtime))
        thresholds = options.thresholds
        # segment-anything keeps what is nested
        own = {"strategy": strategy, "tau": thresholds.tau, "coverage": thresholds.coverage, "nested_thresh": 1.0}
        shared = {**options.generator_options(), **own}
        self._warm_up = EverythingGenerator(self._runtime, WARM_UP_POINTS, **shared)
        self._generator = EverythingGenerator(self._runtime, options.points_per_side, **shared)

    def warm_up(self, image: Picture) -> None:
        """One short run that is not counted."""
        self._warm_up.generate(image)

    def run(self, image: Picture) -> tuple[Records, dict[str, Any]]:
        """Its records, and the account of the run."""
        watch = self._runtime
        watch.reset()
        records = self._generator.generate(image)
        return records, {
            "encode_s": watch.encode_seconds,
            "decoder_calls": watch.decoder_calls,
            "points": watch.points,
        }


def race(
    contenders: Mapping[str, Contender],
    photos: Sequence[Picture],
    *,
    score: Score | None = None,
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, list[Lap]]:
    """Laps of each contender, one for each photo; `REFERENCE` must be among them and runs first.

    Raises:
        BenchError: no photo, or no reference.
    """
    if not photos or REFERENCE not in contenders:
        raise BenchError(f"a race needs at least one photo, and {REFERENCE} among the contenders.")
    order = [REFERENCE, *(name for name in contenders if name != REFERENCE)]
    for name in order:
        contenders[name].warm_up(photos[0])
    laps: dict[str, list[Lap]] = {name: [] for name in order}
    for index, photo in enumerate(photos):
        reference: Records = []
        for name in order:
            start, start_cpu = perf_counter(), process_time()
            records, account = contenders[name].run(photo)
            whole_s, cpu_s = perf_counter() - start, process_time() - start_cpu
            reference = records if name == REFERENCE else reference
            ious = tuple(score(index, records)) if score else ()
            same = agreement(reference, records)
            laps[name].append(Lap(whole_s, cpu_s, records=len(records), agreement=same, ious=ious, **account))
            on_run()
    return laps


def summarise(laps: Mapping[str, list[Lap]]) -> list[dict[str, Any]]:
    """A row for each contender: medians of seconds and of speed-ups, totals of counts, means of the rest."""
    rows = []
    for name, own in laps.items():
        pairs = list(zip(laps[REFERENCE], own, strict=True))
        ious = [iou for lap in own for iou in lap.ious]
        rows.append(
            {
                "contender": name,
                "encode_s": _median([lap.encode_s for lap in own]),
                "decode_s": _median([lap.decode_s for lap in own]),
                "whole_s": _median([lap.whole_s for lap in own]),
                "cpu_s": _median([lap.cpu_s for lap in own]),
                "encode_share": _median([lap.encode_s / lap.whole_s for lap in own]),
                "decode_speedup": _median([theirs.decode_s / lap.decode_s for theirs, lap in pairs]),
                "whole_speedup": _median([theirs.whole_s / lap.whole_s for theirs, lap in pairs]),
                "cpu_speedup": _median([theirs.cpu_s / lap.cpu_s for theirs, lap in pairs]),
                "decoder_calls": sum(lap.decoder_calls for lap in own),
                "points": sum(lap.points for lap in own),
                "points_kept": sum(lap.points for lap in own) / sum(lap.points for lap in laps[REFERENCE]),
                "records": sum(lap.records for lap in own),
                "miou": float(np.mean(ious)) if ious else None,
                "agreement": float(np.mean([lap.agreement for lap in own])),
                "laps": [asdict(lap) for lap in own],
            }
        )
    return rows


def speedups(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The three numbers of the race, against segment-anything's generator in torch.

    `grid_speedup` and `hierarchical_speedup` are of decoding and post-processing, in torch; `runtime_speedup` is of
    the whole, with the hierarchical strategy on the best other runtime.
    """
    by_name = {row["contender"]: row for row in rows}
    others = [
        row["whole_speedup"]
        for name, row in by_name.items()
        if name.startswith("hierarchical, ") and "torch" not in name
    ]
    return {
        "grid_speedup": by_name["grid, torch"]["decode_speedup"],
        "hierarchical_speedup": by_name["hierarchical, torch"]["decode_speedup"],
        "runtime_speedup": max(others) if others else None,
    }


def race_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal of 80 columns, two numbers to a cell, one above the other."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 1, 1))
    heads = (
        ("contender", "agreement, mIoU"),
        ("encode", "the rest"),
        ("whole", "encoder"),
        ("rest", "whole"),
        ("calls", "points"),
        ("masks", "CPU time"),
    )
    for index, pair in enumerate(heads):
        table.add_column("\n".join(pair), justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{escape(row['contender'])}\n{row['agreement']:.3f}, {units.score(row['miou'])}",
            f"{units.seconds(row['encode_s'])}\n{units.seconds(row['decode_s'])}",
            f"{units.seconds(row['whole_s'])}\n{row['encode_share']:.0%}",
            f"{row['decode_speedup']:.2f} x\n{row['whole_speedup']:.2f} x",
            f"{row['decoder_calls']}\n{row['points_kept']:.0%}",
            f"{row['records']}\n{row['cpu_speedup']:.2f} x",
        )
    return table


def write_laps(rows: Sequence[dict[str, Any]], provenance: Mapping[str, Any], path: str | Path) -> None:
    """A CSV line for each lap, with where it comes from.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    columns = [field.name for field in fields(Lap) if field.name != "ious"]
    lines = (
        {"contender": row["contender"], "photo": index, **{name: lap.get(name) for name in columns}}
        for row in rows
        for index, lap in enumerate(row["laps"])
    )
    write_lines(lines, provenance, path)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
