"""Units: how numbers read at the seams between them."""

import math

import pytest

from sam_edge.bench import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (5_780_000, "5.78 M"),
        (371e9, "371 G"),
        (999_999_999, "1.00 G"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (4_600_000, "4.60 MB"), (30_312_345, "30.3 MB"), (375_042_383, "375 MB")]
)
def test_sizes(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.523, "0.52 ms"), (12.07, "12.1 ms"), (803.4, "803 ms"), (1352, "1.35 s")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert units.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.4, "1.40 s"), (59.99, "60.0 s"), (725, "12 min 5 s"), (12000, "3 h 20 min")]
)
def test_seconds(value: float, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.31, "0.31x"), (1.04, "1.04x"), (1.8, "1.8x"), (12.2, "12x"), (0.004, "0.004x")]
)
def test_factors(ratio: float, text: str) -> None:
    assert units.times(ratio) == text


@pytest.mark.parametrize("show", [units.count, units.size, units.milliseconds, units.seconds, units.score])
@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_was_not_measured_is_a_dash(show, missing: float | None) -> None:
    assert show(missing) == units.DASH
