"""`sam-edge bench`'s results: a row per model and runtime, as CSV, JSON and a table in the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from sam_edge.bench import units
from sam_edge.bench.latency import Latency, Ratio
from sam_edge.bench.provenance import write_lines
from sam_edge.errors import BenchError
from sam_edge.files import atomic_file

SCHEMA = 2
FEWEST_RUNS = 6
"""Of fewer, even the shortest and the longest do not hold the median between them in 95 of 100 cases (2 / 2^n)."""
LEVEL = 0.02
"""Medians that differ by less are level, whatever their intervals: a machine differs by as much from day to day."""


@dataclass(frozen=True)
class BenchRow:
    """What one model costs on one runtime; what was not measured is None."""

    model: str
    """The model as the user named it."""
    runtime: str
    """Runtime that ran it."""
    precision: str
    """fp32, fp16, int8, ..."""
    threads: int | None = None
    """Threads that the runtime takes on the CPU."""
    model_sha256: str | None = None
    """What tells the model's weights from others': see `provenance.model_sha256`."""
    parameters: int | None = None
    """Numbers in the model, encoder and decoder."""
    encoder_macs: int | None = None
    """Multiply-accumulates of the encoder's layers for one picture."""
    encoder_macs_with_attention: int | None = None
    """The same with attention's two matrix products."""
    file_bytes: int | None = None
    """Size on disk."""
    peak_bytes: int | None = None
    """Peak resident memory of a fresh process that loads the model and segments one picture."""
    device_peak_bytes: int | None = None
    """Most memory on GPUs meanwhile, beyond what was in use before."""
    cold_start_s: float | None = None
    """From that process's start to its end, files written."""
    cold_start_cpu_s: float | None = None
    """Processor time of all its threads."""
    energy_j: dict[str, dict[str, float]] = field(default_factory=dict)
    """By measurement and counter: joules of one call, where the hardware counts them."""
    latencies: dict[str, Latency] = field(default_factory=dict)
    """By measurement: encode, decode_point, ..."""
    kernels: bool = False
    """Whether sam-edge's own kernels took part."""


def as_dict(row: BenchRow) -> dict[str, Any]:
    """Plain nested values for JSON."""
    return asdict(row)


def flat(row: BenchRow) -> dict[str, Any]:
    """One level of values for CSV: `encode.median_ms`, ..."""
    values: dict[str, Any] = {}
    for name, value in as_dict(row).items():
        if name == "latencies":
            for key, found in value.items():
                ratio = found.pop("over_first") or {}
                del found["samples_ms"]
                values |= {f"{key}.{part}": number for part, number in found.items()}
                values |= {f"{key}.over_first.{part}": number for part, number in ratio.items()}
        elif name == "energy_j":
            values |= {f"{key}.{meter}_j": joules for key, found in value.items() for meter, joules in found.items()}
        else:
            values[name] = value
    return values


def write_csv(rows: Sequence[BenchRow], provenance: dict[str, Any], path: str | Path) -> None:
    """Write one line per row, each with where it comes from; a cell without a number is empty.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    write_lines(map(flat, rows), provenance, path)


def content(rows: Sequence[BenchRow], provenance: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The rows with where they come from and how they were measured, for JSON."""
    return {"schema": SCHEMA, "provenance": provenance, "settings": settings, "rows": [as_dict(row) for row in rows]}


def write_json(measured: dict[str, Any], path: str | Path) -> None:
    """Write what `content` gives.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    with atomic_file(path) as part:
        part.write_text(json.dumps(measured) + "\n", encoding="utf-8")


def read_rows(path: str | Path) -> tuple[dict[str, Any], list[BenchRow]]:
    """Where an earlier `bench.json` comes from, and its rows.

    Raises:
        BenchError: no such file, or one without the runs of each measurement, as earlier versions wrote it.
    """
    try:
        measured = json.loads(Path(path).read_text(encoding="utf-8"))
        rows = [_row(values) for values in measured["rows"]]
        if any(not latency.samples_ms for row in rows for latency in row.latencies.values()):
            raise KeyError("samples_ms")
        return measured["provenance"], rows
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); give an earlier run's bench.json.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{path} is no bench.json of this version ({error!r}): measure again with --out.") from error


def _row(values: dict[str, Any]) -> BenchRow:
    latencies = {
        key: Latency(
            **{
                **found,
                "over_first": None if found["over_first"] is None else Ratio(**found["over_first"]),
                "samples_ms": tuple(found["samples_ms"]),
            }
        )
        for key, found in values["latencies"].items()
    }
    return BenchRow(**{**values, "latencies": latencies})


@dataclass(frozen=True)
class Change:
    """How a measurement of today compares with an earlier one."""

    what: str
    """The model, its runtime and the measurement."""
    ratio: Ratio
    """Of medians, today's over the earlier one's; the interval is of the runs of each."""
    runs: int
    """Of the one that has fewer."""

    @property
    def verdict(self) -> Literal["slower", "faster", "level", "too few runs to tell"]:
        """`level` where the interval holds 1, or the medians differ by less than `LEVEL`."""
        if self.runs < FEWEST_RUNS:
            return "too few runs to tell"
        if self.ratio.low > 1 and self.ratio.median > 1 + LEVEL:
            return "slower"
        if self.ratio.high < 1 and self.ratio.median < 1 - LEVEL:
            return "faster"
        return "level"

    def words(self) -> str:
        """A line for people."""
        return f"{self.what}: {self.verdict}, {self.ratio.median:.2f} ({self.ratio.low:.2f} to {self.ratio.high:.2f})"


def compare(rows: Sequence[BenchRow], earlier: Sequence[BenchRow]) -> list[Change]:
    """Every measurement that both have, of the same model, runtime, precision and threads.

    Raises:
        BenchError: they have none in common.
    """
    known = {_identity(row): row for row in earlier}
    found = [
        Change(
            f"{_name(row)}, {key}",
            Ratio.of_apart(latency.samples_ms, old.samples_ms),
            min(latency.runs, old.runs),
        )
        for row in rows
        if _identity(row) in known
        for key, latency in row.latencies.items()
        if (old := known[_identity(row)].latencies.get(key)) is not None
    ]
    if not found:
        raise BenchError("nothing was measured that the earlier file holds: give its models, runtimes and threads.")
    return found


def _name(row: BenchRow) -> str:
    """A row for people."""
    threads = "" if row.threads is None else f" ({row.threads} {'thread' if row.threads == 1 else 'threads'})"
    return f"{row.model} on {row.runtime}{threads}"


def _identity(row: BenchRow) -> tuple[Any, ...]:
    return row.model, row.runtime, row.precision, row.threads


def comparisons(rows: Sequence[BenchRow]) -> list[str]:
    """A line per row after the first: its times to encode and end to end over the first row's, in turn."""
    lines = []
    for row in rows[1:]:
        parts = [
            f"{name} {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
            for name, key in (("encode", "encode"), ("end to end", "end_to_end"))
            if key in row.latencies and (ratio := row.latencies[key].over_first) is not None
        ]
        if parts:
            lines.append(f"{_name(row)} takes, of {_name(rows[0])}: {', '.join(parts)}")
    return lines


PHASES = {
    "pre_process": "pre-processing",
    "transfer_in": "in",
    "encode": "encode",
    "decode_point": "decode",
    "transfer_out": "out",
    "post_process": "post-processing",
}
"""What a picture goes through, in order, as it is told to people."""


def details(rows: Sequence[BenchRow], statistic: str = "median_ms") -> list[str]:
    """Lines below the table: each row's phases, batches, start and energy, as far as they were measured."""
    lines = []
    for row in rows:
        parts = [
            f"{words} {units.milliseconds(getattr(row.latencies[key], statistic))}"
            for key, words in PHASES.items()
            if key in row.latencies
        ]
        for key, latency in row.latencies.items():
            count = key.removeprefix("encode_")
            if key.startswith("encode_") and count.isdecimal():
                parts.append(f"{count} at once {int(count) * latency.per_second:.3g} pictures/s")
        if row.cold_start_s is not None:
            parts.append(f"cold start {units.seconds(row.cold_start_s)}")
        if row.device_peak_bytes is not None:
            parts.append(f"on the GPU {units.size(row.device_peak_bytes)}")
        for meter, joules in row.energy_j.get("end_to_end", {}).items():
            parts.append(f"{joules:.3g} J a picture ({meter})")
        if parts:
            lines.append(f"{_name(row)}: {', '.join(parts)}")
    return lines


def rich_table(rows: Sequence[BenchRow], statistic: str = "median_ms") -> Table:
    """The rows for a terminal of 80 columns: one `statistic` of times, two numbers to a cell, one above the other.

    A pair that no row has a number for is left out.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 1, 1))
    swept = len({row.threads for row in rows}) > 1
    lines = [_pairs(row, statistic, swept) for row in rows]
    nothing = {units.DASH, ""}
    shown = [heads for heads in (lines[0] if lines else {}) if any(set(line[heads]) - nothing for line in lines)]
    for index, heads in enumerate(shown):
        table.add_column("\n".join(heads), justify="right" if index else "left", no_wrap=True)
    for line in lines:
        table.add_row(*("\n".join(line[heads]) for heads in shown))
    return table


def _pairs(row: BenchRow, statistic: str, told: bool) -> dict[tuple[str, str], tuple[str, str]]:
    def time(key: str) -> str:
        return units.milliseconds(getattr(row.latencies[key], statistic) if key in row.latencies else None)

    runtime = f"{row.runtime}, {row.precision}{', kernels' if row.kernels else ''}"
    model = f"{row.model}, {row.threads} thr." if told else row.model
    whole = row.latencies.get("end_to_end")
    return {
        ("model", "runtime, precision"): (escape(model), escape(runtime)),
        ("parameters", "encoder MACs"): (units.count(row.parameters), units.count(row.encoder_macs)),
        ("file", "peak"): (units.size(row.file_bytes), units.size(row.peak_bytes)),
        ("encode", "end to end"): (time("encode"), time("end_to_end")),
        ("point", "box"): (time("decode_point"), time("decode_box")),
        ("64 pts", "per s"): (time("decode_64_points"), "" if whole is None else f"{whole.per_second:.3g}"),
    }
