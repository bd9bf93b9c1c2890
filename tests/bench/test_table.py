"""The bench table: the same numbers in CSV, JSON and the terminal."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sam_edge.bench.latency import Latency, Ratio
from sam_edge.bench.table import (
    BenchRow,
    compare,
    comparisons,
    content,
    details,
    flat,
    read_rows,
    rich_table,
    write_csv,
    write_json,
)
from sam_edge.errors import BenchError

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
TIMED = replace(
    FULL,
    latencies={"encode": Latency.of(np.random.default_rng(0).normal(100, 4, 40).tolist())},
    energy_j={"encode": {"package-0": 3.5}},
)
SPARSE = BenchRow(model="a, b", runtime="torch", precision="fp32")


def test_csv_round_trips_with_empty_cells_for_what_is_missing(tmp_path: Path) -> None:
    write_csv([SPARSE, FULL], {"commit": "abc", "hardware": {"cpu": "A76"}}, tmp_path / "bench.csv")
    with (tmp_path / "bench.csv").open(newline="") as file:
        sparse, full = csv.DictReader(file)
    told = {"commit": "abc", "cpu": "A76", **dict.fromkeys(("date", "version", "command", "gpu"), "")}
    assert full == {name: "" if value is None else str(value) for name, value in {**flat(FULL), **told}.items()}
    assert full["encode.median_ms"] == "612.25"
    assert sparse["model"] == "a, b"
    assert sparse["parameters"] == sparse["encode.median_ms"] == ""


def test_json_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    write_json(content([FULL, SPARSE], {"commit": "abc"}, {"runs": 10}), path)
    found = json.loads(path.read_text())
    assert (found["provenance"], found["settings"], found["schema"]) == ({"commit": "abc"}, {"runs": 10}, 2)
    with pytest.raises(BenchError, match="measure again"):
        # FULL has no single runs, by which it could be compared
        read_rows(path)
    write_json(content([TIMED, SPARSE], {"commit": "abc"}, {}), path)
    assert read_rows(path) == ({"commit": "abc"}, [TIMED, SPARSE])
    assert read_rows(path)[1][0].latencies["encode"].samples_ms == TIMED.latencies["encode"].samples_ms


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


def timed(mean_ms: float, seed: int, runs: int = 60) -> BenchRow:
    """A row whose encoder takes so long, by 4 % more or less."""
    samples = np.random.default_rng(seed).normal(mean_ms, 0.04 * mean_ms, runs).tolist()
    return replace(SPARSE, latencies={"encode": Latency.of(samples)})


def test_what_is_slower_than_it_was_is_told_and_what_is_level_is_not() -> None:
    verdicts = [compare([timed(100, seed)], [timed(100, seed + 100)])[0].verdict for seed in range(20)]
    assert verdicts.count("level") >= 19
    (slower,) = compare([timed(106, 1)], [timed(100, 2)])
    (faster,) = compare([timed(94, 3)], [timed(100, 4)])
    assert (slower.verdict, faster.verdict) == ("slower", "faster")
    assert slower.ratio.low < slower.ratio.median < slower.ratio.high
    assert slower.words().startswith("a, b on torch, encode: slower, 1.0")


def test_only_the_same_is_compared_with_the_same() -> None:
    row = timed(100, 1)
    for other in ({"model": "b"}, {"runtime": "onnxruntime"}, {"precision": "int8"}, {"threads": 2}):
        with pytest.raises(BenchError, match="nothing was measured"):
            compare([row], [replace(row, **other)])


def test_phases_start_and_energy_are_told_below_the_table() -> None:
    latency = Latency.of([2.0, 2.0])
    row = replace(
        SPARSE,
        latencies=dict.fromkeys(("pre_process", "transfer_in", "encode", "post_process", "encode_4"), latency),
        cold_start_s=1.25,
        energy_j={"end_to_end": {"VDD_IN": 0.5}},
    )
    (line,) = details([row])
    assert line == (
        "a, b on torch: pre-processing 2.00 ms, in 2.00 ms, encode 2.00 ms, post-processing 2.00 ms, "
        "4 at once 2e+03 pictures/s, cold start 1.25 s, 0.5 J a picture (VDD_IN)"
    )
    assert details([SPARSE]) == []
