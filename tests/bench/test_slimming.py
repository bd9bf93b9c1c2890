"""The ablation's tables: what is measured, how it is summed up, and what is said of the order."""

import math

import pytest

from sam_edge.bench.slimming import TABLES, Result, Variant, as_dict, as_markdown, run_tables


def test_a_variant_that_two_tables_share_is_measured_once_per_seed():
    calls = []

    def measure(variant, seed):
        calls.append((variant, seed))
        return 0.5

    results = run_tables(["3", "5"], [0, 1], measure)
    assert len(calls) == len(set(calls)) == 2 * len(results)
    shared = {row.variant for row in TABLES["3"].rows} & {row.variant for row in TABLES["5"].rows}
    assert shared == {Variant()}
    assert len(results) == len(TABLES["3"].rows) + len(TABLES["5"].rows) - 1


def test_mean_and_spread_are_over_seeds():
    scores = {0: 0.2, 1: 0.4, 2: 0.6}
    results = run_tables(["4"], [0, 1, 2], lambda variant, seed: scores[seed])
    for result in results.values():
        assert result.mean == pytest.approx(0.4)
        assert result.spread == pytest.approx(0.2)


def test_the_table_shows_ours_beside_the_papers_and_what_was_lost():
    results = {row.variant: Result((0.5, 0.52)) for row in TABLES["5"].rows}
    text = as_markdown(["5"], results, 0.6, "nano.")
    assert "| global, Gaussian | 51.00 | 1.41 | 9.00 | 64.48 |" in text
    assert "beyond the spread: nothing" in text


def test_an_order_against_the_papers_is_named_only_beyond_the_spread():
    def results(taylor, disturbed):
        values = {row.variant: Result((0.5, 0.5)) for row in TABLES["3"].rows}
        return values | {TABLES["3"].rows[2].variant: taylor, TABLES["3"].rows[3].variant: disturbed}

    text = as_markdown(["3"], results(Result((0.60, 0.60)), Result((0.55, 0.55))), 0.7, "nano.")
    assert "alternate, Taylor beats alternate, disturbed Taylor by 5.00" in text
    within = as_markdown(["3"], results(Result((0.50, 0.60)), Result((0.54, 0.54))), 0.7, "nano.")
    assert "alternate, Taylor beats alternate, disturbed" not in within


def test_json_has_no_numbers_that_json_does_not_know():
    results = {row.variant: Result((0.5,)) for row in TABLES["fig6"].rows}
    rows = as_dict(["fig6"], results)["fig6"]
    assert rows[2]["paper"] is None
    assert all(not math.isnan(row["mean"]) for row in rows)


def test_table_2_is_fair_one_step_baselines_at_both_ratios():
    rows = TABLES["2"].rows
    assert [row.variant.ratio for row in rows] == [0.5] * 6 + [0.77] * 6
    assert [row.variant.schedule for row in rows] == (["one-step"] * 5 + ["alternate"]) * 2
    assert [row.variant.scratch for row in rows] == ([True] + [False] * 5) * 2
