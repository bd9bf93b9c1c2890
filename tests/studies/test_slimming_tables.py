"""The ablation's tables: what is measured, how it is summed up, and what is said of the order."""

import json
import math

import pytest

from sam_edge.errors import BenchError
from sam_edge.studies.repeats import Scores
from sam_edge.studies.slimming_tables import TABLES, Variant, as_dict, as_markdown, choose, variants


def pictured(point):
    """Of one picture."""
    return {measure: [[(point, 1)]] for measure in ("point", "box")}


def results(names, **points):
    """Two seeds 0.02 apart around 0.5, or around what is given for a row's label."""
    found = {}
    for row in (row for name in names for row in TABLES[name].rows):
        middle = points.get(row.label, found.get(row.variant.name, [{"point": 0.51}])[0]["point"] - 0.01)
        found[row.variant.name] = [
            Scores({"point": middle + shift, "box": middle + shift}, pictured(middle + shift))
            for shift in (0.01, -0.01)
        ]
    return found


UNPRUNED = Scores({"point": 0.6, "box": 0.7}, {"point": [[(0.6, 1)]]})


def test_a_variant_that_two_tables_share_is_one():
    tables = choose(["3", "5"], [], [])
    assert len(variants(tables)) == len(TABLES["3"].rows) + len(TABLES["5"].rows) - 1
    assert Variant().name in variants(tables)
    every = {row.variant for table in TABLES.values() for row in table.rows}
    assert len({variant.name for variant in every}) == len(every)


def test_rows_are_chosen_by_part_of_their_label_and_by_ratio():
    chosen = choose(["2"], ["magnitude", "SlimSAM"], [0.5])
    assert [row.label for row in chosen["2"].rows] == ["50% magnitude pruning", "50% SlimSAM"]
    assert len(choose(["2", "3"], [], [0.77])["2"].rows) == 6
    assert list(choose(["2", "3"], ["scratch"], [])) == ["2"]
    assert choose([], [], []) == TABLES
    with pytest.raises(BenchError, match="for scrach"):
        choose(["2"], ["SlimSAM", "scrach"], [])
    with pytest.raises(BenchError, match=r"for 0\.6"):
        choose(["2"], [], [0.5, 0.6])


def test_the_table_shows_ours_beside_the_papers_and_what_was_lost():
    text = as_markdown(choose(["5"], [], []), results(["5"]), UNPRUNED, "nano.")
    assert "| unpruned | 60.0 | 70.0 | | |" in text
    assert "| global, Gaussian | 50.0 ± 1.4 | 50.0 ± 1.4 | -10.0 (-11.0 to -9.0) | 64.48 |" in text
    assert "- point, beyond chance, as in the paper: nothing; against it: nothing." in text


def test_an_order_is_named_only_beyond_chance():
    def said(**points):
        return as_markdown(choose(["3"], [], []), results(["3"], **points), UNPRUNED, "nano.")

    # each spread is 0.014
    against = said(**{"alternate, Taylor": 0.53})
    assert "against it: alternate, Taylor beats alternate, disturbed Taylor." in against
    assert "alternate, Taylor beats alternate, disturbed" not in said(**{"alternate, Taylor": 0.528})
    along = said(**{"alternate, disturbed Taylor": 0.53})
    assert "as in the paper: one-step, Taylor" not in along
    assert "alternate, disturbed Taylor beats one-step, Taylor" in along


def test_rows_of_different_ratios_are_not_compared():
    text = as_markdown(choose(["2"], [], []), results(["2"], **{"77% random pruning": 0.9}), UNPRUNED, "nano.")
    assert "77% random pruning beats 77% SlimSAM" in text
    assert "77% random pruning beats 50%" not in text


def test_json_has_no_numbers_that_json_does_not_know():
    rows = as_dict(choose(["fig6"], [], []), results(["fig6"]))["fig6"]
    assert rows[2]["paper"] is None
    assert not math.isnan(rows[2]["scores"]["point"]["mean"])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_table_2_is_fair_one_step_baselines_at_both_ratios():
    rows = TABLES["2"].rows
    assert [row.variant.ratio for row in rows] == [0.5] * 6 + [0.77] * 6
    assert [row.variant.schedule for row in rows] == (["one-step"] * 5 + ["alternate"]) * 2
    assert [row.variant.scratch for row in rows] == ([True] + [False] * 5) * 2
