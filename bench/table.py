"""`sam-edge bench`'s results: a row per model and runtime, as CSV, JSON and a table in the terminal."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from sam_edge.bench import units
from sam_edge.bench.latency import EverythingResult, Latency
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
    everything: EverythingResult | None = None
    """One pass of everything mode."""


def as_dict(row: BenchRow) -> dict[str, Any]:
    """Plain nested values for JSON."""
    return asdict(row)


def flat(row: BenchRow) -> dict[str, Any]:
    """One level of values for CSV: `encode.median_ms`, `everything.seconds`."""
    values: dict[str, Any] = {}
    for name, value in as_dict(row).items():
        if name == "latencies":
            values |= {
                f"{key}.{part}": number for key, found in value.items() for part, number in found.items()
            }
        elif name == "everything":
            values |= {f"everything.{part}": number for part, number in (value or {}).items()}
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


def write_json(
    rows: Sequence[BenchRow], hardware: dict[str, Any], settings: dict[str, Any], path: str | Path
) -> None:
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


def rich_table(rows: Sequence[BenchRow]) -> Table:
    """The rows for a terminal: medians, and only the columns that some row has a number for."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    cells = [_cells(row) for row in rows]
    shown = [name for name in (cells[0] if cells else {}) if any(line[name] != units.DASH for line in cells)]
    for index, name in enumerate(shown):
        table.add_column(name, justify="left" if index < 3 else "right", overflow="fold")
    for line in cells:
        table.add_row(*(line[name] for name in shown))
    return table


def _cells(row: BenchRow) -> dict[str, str]:
    def median(key: str) -> str:
        return units.milliseconds(row.latencies[key].median_ms if key in row.latencies else None)

    found = row.everything
    return {
        "model": row.model,
        "runtime": row.runtime,
        "precision": row.precision,
        "params": units.count(row.parameters),
        "MACs": units.count(row.encoder_macs),
        "file": units.size(row.file_bytes),
        "peak": units.size(row.peak_bytes),
        "encode": median("encode"),
        "point": median("decode_point"),
        "box": median("decode_box"),
        "64 points": median("decode_64_points"),
        "end to end": median("end_to_end"),
        "everything": f"{units.seconds(found.seconds)}, {found.masks} masks" if found else units.DASH,
    }
