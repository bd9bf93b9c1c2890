"""`sam-edge bench`'s results: a row per model and runtime, as CSV, JSON and a table in the terminal."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sam_edge.bench import units
from sam_edge.bench.latency import Latency
from sam_edge.files import atomic_file

SCHEMA = 1


@dataclass(frozen=True)
class BenchRow:
    """What one model costs on one runtime; what was not measured is None."""

    model: str
    """The model as the user named it."""
    runtime: str
    """Runtime that ran it."""
    precision: str
    """fp32, fp16, int8, ..."""
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
                values |= {f"{key}.{part}": number for part, number in found.items()}
                values |= {f"{key}.over_first.{part}": number for part, number in ratio.items()}
        else:
            values[name] = value
    return values


def write_csv(rows: Sequence[BenchRow], path: str | Path) -> None:
    """Write one line per row; a cell without a number is empty.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    lines = [flat(row) for row in rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def write_json(rows: Sequence[BenchRow], hardware: dict[str, Any], settings: dict[str, Any], path: str | Path) -> None:
    """Write the rows with what they were measured on and how.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    content = {
        "schema": SCHEMA,
        "hardware": hardware,
        "settings": settings,
        "rows": [as_dict(row) for row in rows],
    }
    with atomic_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
            lines.append(
                f"{row.model} on {row.runtime} takes, of {rows[0].model} on {rows[0].runtime}: {', '.join(parts)}"
            )
    return lines


def rich_table(rows: Sequence[BenchRow], statistic: str = "median_ms") -> Table:
    """The rows for a terminal of 80 columns: one `statistic` of times, two numbers to a cell, one above the other.

    A pair that no row has a number for is left out.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 1, 1))
    lines = [_pairs(row, statistic) for row in rows]
    nothing = {units.DASH, ""}
    shown = [heads for heads in (lines[0] if lines else {}) if any(set(line[heads]) - nothing for line in lines)]
    for index, heads in enumerate(shown):
        table.add_column("\n".join(heads), justify="right" if index else "left", no_wrap=True)
    for line in lines:
        table.add_row(*("\n".join(line[heads]) for heads in shown))
    return table


def _pairs(row: BenchRow, statistic: str) -> dict[tuple[str, str], tuple[str, str]]:
    def time(key: str) -> str:
        return units.milliseconds(getattr(row.latencies[key], statistic) if key in row.latencies else None)

    runtime = f"{row.runtime}, {row.precision}{', kernels' if row.kernels else ''}"
    return {
        ("model", "runtime, precision"): (escape(row.model), escape(runtime)),
        ("parameters", "encoder MACs"): (units.count(row.parameters), units.count(row.encoder_macs)),
        ("file", "peak"): (units.size(row.file_bytes), units.size(row.peak_bytes)),
        ("encode", "end to end"): (time("encode"), time("end_to_end")),
        ("point", "box"): (time("decode_point"), time("decode_box")),
        ("64 points", ""): (time("decode_64_points"), ""),
    }
