"""The race of everything mode: who runs when, what is counted, which ratio is reported."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from sam_edge.bench import everything
from sam_edge.bench.everything import (
    REFERENCE,
    Lap,
    Ours,
    RaceOptions,
    race,
    race_table,
    speedups,
    summarise,
    write_laps,
)
from sam_edge.errors import BenchError
from sam_edge.segment.config import Thresholds
from sam_edge.segment.records import Found, box_of, run_lengths

OPTIONS = RaceOptions(Thresholds(pred_iou=-1.0, stability=0.0, tau=0.0), points_per_side=5)


class Runner:
    """A contender of known speed that finds one square."""

    def __init__(self, clock: "Clock", name: str, encode_s: float, decode_s: list[float], side: int = 8) -> None:
        self.clock, self.name, self.encode_s, self.decode_s = clock, name, encode_s, iter(decode_s)
        mask = np.zeros((16, 16), bool)
        mask[:side, :side] = True
        self.records = [
            Found(mask.shape, run_lengths(mask), box_of(mask), 0.5, 0.9, (0.0, 0.0), (0, 0, 16, 16)).record("coco_rle")
        ]

    def warm_up(self, image: np.ndarray) -> None:
        self.clock.order.append(f"warm {self.name}")

    def run(self, image: np.ndarray):
        self.clock.order.append(self.name)
        decode_s = next(self.decode_s)
        self.clock.now_s += self.encode_s + decode_s
        # as if the encoder ran elsewhere
        self.clock.cpu_s += decode_s
        return self.records, {"encode_s": self.encode_s, "decoder_calls": 2, "points": 25}


class Clock:
    """Clocks that only contenders move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = self.cpu_s = 0.0
        self.order: list[str] = []
        monkeypatch.setattr(everything, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(everything, "process_time", lambda: self.cpu_s)


@pytest.fixture
def laps(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, dict[str, list[Lap]]]:
    """A race over three photos, the second of them slow for everyone."""
    clock = Clock(monkeypatch)
    contenders = {
        "grid, torch": Runner(clock, "grid", 1, [3, 30, 3]),
        REFERENCE: Runner(clock, "theirs", 1, [12, 90, 18]),
        "hierarchical, torch": Runner(clock, "hierarchical", 1, [2, 15, 2], side=4),
        "hierarchical, openvino": Runner(clock, "openvino", 0.5, [1.5, 9, 1.5]),
        "hierarchical, onnxruntime": Runner(clock, "onnxruntime", 0.5, [2.5, 9, 2.5]),
    }
    photos = [np.zeros((16, 16, 3), np.uint8)] * 3
    return clock, race(contenders, photos, score=lambda index, records: [index / 4, 0.5])


def test_contenders_take_turns_on_every_photo(laps):
    clock, _ = laps
    names = ["theirs", "grid", "hierarchical", "openvino", "onnxruntime"]
    assert clock.order == [f"warm {name}" for name in names] + names * 3


def test_speed_ups_are_medians_of_ratios(laps):
    rows = {row["contender"]: row for row in summarise(laps[1])}
    assert rows["grid, torch"]["decode_speedup"] == pytest.approx(np.median([12 / 3, 90 / 30, 18 / 3]))
    assert rows["grid, torch"]["whole_speedup"] == pytest.approx(np.median([13 / 4, 91 / 31, 19 / 4]))
    assert rows[REFERENCE]["decode_speedup"] == rows[REFERENCE]["agreement"] == 1.0
    assert rows[REFERENCE]["encode_share"] == pytest.approx(1 / 19)
    assert rows["grid, torch"]["cpu_speedup"] == pytest.approx(np.median([12 / 3, 90 / 30, 18 / 3]))
    assert rows["hierarchical, torch"]["agreement"] == pytest.approx(16 / 64)
    assert rows["grid, torch"]["miou"] == pytest.approx(np.mean([0, 0.5, 0.25, 0.5, 0.5, 0.5]))
    found = speedups(summarise(laps[1]))
    assert found["grid_speedup"] == pytest.approx(4)
    assert found["hierarchical_speedup"] == pytest.approx(6)
    # the best of the other runtimes, from picture to records
    assert found["runtime_speedup"] == pytest.approx(np.median([13 / 2, 91 / 9.5, 19 / 2]))


def test_table_and_csv_show_every_contender(laps, tmp_path):
    rows = summarise(laps[1])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(race_table(rows))
    text = console.export_text()
    assert all(row["contender"] in text for row in rows)
    assert "4.00 x" in text
    write_laps(rows, {"commit": "abc", "hardware": {"cpu": "A76"}}, tmp_path / "race.csv")
    with (tmp_path / "race.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 15
    assert lines[0]["contender"] == REFERENCE
    assert float(lines[0]["whole_s"]) == 13
    assert {(line["commit"], line["cpu"]) for line in lines} == {("abc", "A76")}


def test_a_race_needs_a_photo_and_a_reference(monkeypatch):
    runner = Runner(Clock(monkeypatch), "a", 1, [1])
    for contenders, photos in (({"a": runner}, [np.zeros((4, 4, 3), np.uint8)]), ({REFERENCE: runner}, [])):
        with pytest.raises(BenchError, match="at least one photo"):
            race(contenders, photos)


def test_real_contenders_find_the_same_and_account_for_it(tiny_config, make_sam, photo):
    from sam_edge.commands.workshop.reference import SegmentAnythings
    from sam_edge.models.torch_runtime import TorchRuntime

    runtime = TorchRuntime(make_sam(tiny_config))
    contenders = {
        REFERENCE: SegmentAnythings(make_sam(tiny_config), OPTIONS),
        "grid, torch": Ours(runtime, "grid", OPTIONS),
        "hierarchical, torch": Ours(runtime, "hierarchical", OPTIONS),
    }
    theirs, grid, hierarchical = summarise(race(contenders, [photo, photo[::-1].copy()]))
    assert theirs["points"] == grid["points"] == 50
    assert theirs["decoder_calls"] == grid["decoder_calls"] == 2
    assert grid["agreement"] > 0.999
    assert theirs["records"] == grid["records"]
    assert hierarchical["points_kept"] < 1
    assert all(0 < row["encode_share"] < 1 for row in (theirs, grid, hierarchical))
    assert theirs["miou"] is None
