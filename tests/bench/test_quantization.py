"""sam_edge.bench.quantization: every setting with every seed, points lost against the float parent."""

import csv
from dataclasses import astuple

import pytest
from rich.console import Console

from sam_edge.bench.quantization import Measured, Setting, compare_settings, rich_table, settings, write_csv

PICTURES = (0.3, 0.5, 0.7)


def totals(point: float, box: float) -> dict[str, list[list[list[float]]]]:
    """Of one data set of three pictures with a mask each, around these means."""
    return {
        name: [[[value + shift - 0.5, 1] for shift in PICTURES]]
        for name, value in (("miou_point", point), ("miou_box", box))
    }


PARENT = Measured(0.70, 0.80, 1.0, 1.0, 0.0, 0.0, 1000, totals(0.70, 0.80))


def measure(setting: Setting, seed: int) -> Measured:
    """Loses a point per missing bit, and a tenth per seed."""
    lost = 0.01 * (8 - setting.bits) + 0.001 * seed
    point, box = 0.70 - lost, 0.80 - 2 * lost
    return Measured(point, box, 0.9, 0.95, 0.02 + lost, 0.01, 250, totals(point, box))


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


def test_a_rounding_that_was_asked_for_is_another_row():
    (named,), (plain,) = (list(settings((8,), ("mse",), (True,), rounding)) for rounding in ("nearest", "auto"))
    assert named.label == f"{plain.label} nearest"


def compared(folder, chosen, seeds, measure=measure, on_run=None):
    return compare_settings(lambda: PARENT, chosen, seeds, measure, folder / "scores.jsonl", {"model": "m"}, on_run)


def test_drops_have_an_interval_over_pictures_and_seeds(tmp_path):
    calls: list[tuple[int, int, str]] = []
    mse = Setting(6, "mse", True)
    parent, rows = compared(tmp_path / "three", [mse], range(3), on_run=lambda *call: calls.append(call))
    assert parent == PARENT
    point, box = (rows[0].drop(PARENT, prompt) for prompt in ("point", "box"))
    # every picture loses the same, so that only seeds make an interval
    assert astuple(point) == pytest.approx((0.021, 0.020, 0.022), abs=2e-4)
    assert astuple(box) == pytest.approx((0.042, 0.040, 0.044), abs=4e-4)
    assert rows[0].as_dict(PARENT)["lost"]["box"]["mean"] == box.mean
    assert "totals" not in rows[0].as_dict(PARENT)["runs"][0]
    assert calls == [(0, 3, "float"), *((seed, 3, f"W6A6 mse twin, seed {seed}") for seed in range(3))]
    alone = compared(tmp_path / "one", [mse], [0])[1][0].drop(PARENT, "point")
    assert alone.low == pytest.approx(alone.high)


def test_a_table_cut_short_goes_on_from_the_runs_it_has(tmp_path):
    chosen = list(settings((8, 6), ("hessian", "mse"), (True, False)))
    calls: list[tuple[Setting, int]] = []

    def killed(setting: Setting, seed: int) -> Measured:
        if len(calls) == 11:
            raise KeyboardInterrupt
        calls.append((setting, seed))
        return measure(setting, seed)

    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, chosen, range(2), killed)
    again = compared(tmp_path, chosen, range(2), lambda *run: calls.append(run) or measure(*run))
    assert len(calls) == len(set(calls)) == 2 * len(chosen)
    assert again == compared(tmp_path / "whole", chosen, range(2))


def test_the_table_and_the_csv_say_what_was_measured(tmp_path):
    _, rows = compared(tmp_path, list(settings((8, 6), ("hessian",), (True,))), range(2))
    console = Console(width=200, record=True, file=(tmp_path / "table").open("w"))
    console.print(rich_table(PARENT, rows))
    text = console.export_text()
    assert "W6A6" in text
    assert "2.05 (2.00 to 2.10)" in text
    assert "0.250 x" in text
    assert "0.9500 ± 0.0000" in text
    assert "0.0405 ± 0.0007" in text
    write_csv(PARENT, rows, {"commit": "abc"}, tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [line["bits"] for line in lines] == ["0", "8", "8", "6", "6"]
    assert {line["commit"] for line in lines} == {"abc"}
    assert float(lines[3]["miou_box"]) == pytest.approx(0.76)
