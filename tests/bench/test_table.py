"""The bench table: the same numbers in CSV, JSON and the terminal."""

import csv
import io
import json
from pathlib import Path

from rich.console import Console

from sam_edge.bench.latency import Latency, Ratio
from sam_edge.bench.table import BenchRow, as_dict, comparisons, flat, rich_table, write_csv, write_json

FULL = BenchRow(
    model="slimsam-50",
    runtime="onnxruntime",
    precision="int8",
    parameters=26_100_000,
    encoder_macs=92_000_000_000,
    encoder_macs_with_attention=98_400_000_000,
    file_bytes=30_300_000,
    peak_bytes=402_000_000,
    latencies={"encode": Latency(600.5, 613.5, 612.25, 640.0, 660.0, 700.125, 10, Ratio(0.5, 0.45, 0.55))},
)
SPARSE = BenchRow(model="a, b", runtime="torch", precision="fp32")


def test_csv_round_trips_with_empty_cells_for_what_is_missing(tmp_path: Path) -> None:
    write_csv([SPARSE, FULL], tmp_path / "bench.csv")
    with (tmp_path / "bench.csv").open(newline="") as file:
        sparse, full = csv.DictReader(file)
    assert full == {name: str(value) for name, value in flat(FULL).items()}
    assert full["encode.median_ms"] == "612.25"
    assert sparse["model"] == "a, b"
    assert sparse["parameters"] == sparse["encode.median_ms"] == ""


def test_json_round_trips(tmp_path: Path) -> None:
    write_json([FULL, SPARSE], {"cpu": "A76"}, {"runs": 10}, tmp_path / "new" / "bench.json")
    content = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert content["rows"] == [as_dict(FULL), as_dict(SPARSE)]
    assert (content["hardware"], content["settings"], content["schema"]) == ({"cpu": "A76"}, {"runs": 10}, 1)


def printed(rows: list[BenchRow]) -> str:
    """What a terminal of 80 columns shows."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table(rows))
    return console.export_text()


def test_the_terminal_shows_numbers_and_dashes_in_80_columns() -> None:
    text = printed([FULL, SPARSE])
    for shown in (
        "slimsam-50",
        "onnxruntime, int8",
        "612 ms",
        "30.3 MB",
        "402 MB",
        "26.1 M",
        "—",
    ):
        assert shown in text


def test_the_terminal_shows_no_empty_column_and_takes_names_literally() -> None:
    text = printed([BenchRow(model="a [b]", runtime="torch", precision="fp32", file_bytes=1)])
    assert "a [b]" in text
    assert "encode" not in text


def test_the_table_shows_the_percentile_that_it_is_asked_for() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_table([FULL], "p90_ms"))
    assert "640 ms" in console.export_text()


def test_later_rows_are_compared_with_the_first() -> None:
    assert comparisons([SPARSE, FULL, SPARSE]) == [
        "slimsam-50 on onnxruntime takes, of a, b on torch: encode 0.50 (0.45 to 0.55)"
    ]
    assert comparisons([FULL]) == []


def test_no_rows_make_an_empty_table() -> None:
    assert rich_table([]).row_count == 0
