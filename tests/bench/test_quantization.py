"""sam_edge.bench.quantization: every setting with every seed, points lost against the float parent."""

import csv

import pytest
from rich.console import Console

from sam_edge.bench.quantization import Measured, Setting, compare_settings, rich_table, settings, write_csv

PARENT = Measured(0.70, 0.80, 1.0, 1000)


def measure(setting: Setting, seed: int) -> Measured:
    """Loses a point per missing bit, and a tenth per seed."""
    lost = 0.01 * (8 - setting.bits) + 0.001 * seed
    return Measured(0.70 - lost, 0.80 - 2 * lost, 0.9, 250)


def test_min_max_has_no_twin_scales_and_is_listed_once():
    found = list(settings((8, 6), ("hessian", "minmax"), (True, False)))
    assert found == [
        Setting(8, "hessian", True),
        Setting(8, "hessian", False),
        Setting(8, "minmax", False),
        Setting(6, "hessian", True),
        Setting(6, "hessian", False),
        Setting(6, "minmax", False),
    ]
    assert list(settings((8,), ("minmax",), (False,))) == [Setting(8, "minmax", False)]


def test_drops_are_points_with_their_spread_over_seeds():
    calls: list[tuple[int, int, str]] = []
    rows = compare_settings([Setting(6, "mse", True)], range(3), measure, lambda *call: calls.append(call))
    assert rows[0].drop(PARENT, "point") == pytest.approx((2.1, 0.1))
    assert rows[0].drop(PARENT, "box") == pytest.approx((4.2, 0.2))
    assert [call[:2] for call in calls] == [(0, 3), (1, 3), (2, 3)]
    assert compare_settings([Setting(6, "mse", True)], [0], measure)[0].drop(PARENT, "point")[1] == 0


def test_the_table_and_the_csv_say_what_was_measured(tmp_path):
    rows = compare_settings(list(settings((8, 6), ("hessian",), (True,))), range(2), measure)
    console = Console(width=100, record=True, file=(tmp_path / "table").open("w"))
    console.print(rich_table(PARENT, rows))
    text = console.export_text()
    assert "W6A6" in text
    assert "2.05 ± 0.07" in text
    assert "0.250 x" in text
    write_csv(PARENT, rows, tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [line["bits"] for line in lines] == ["0", "8", "8", "6", "6"]
    assert float(lines[3]["miou_box"]) == pytest.approx(0.76)
