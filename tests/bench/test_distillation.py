"""sam_edge.bench.distillation: the rows, and the table beside the paper's."""

from sam_edge.bench.distillation import ROWS, choose, table
from sam_edge.bench.repeats import Scores


def test_the_table_gives_mean_and_spread_beside_the_papers_value_and_who_beats_whom():
    rows = choose(["all three", "no teacher"])
    assert [row.name for row in rows] == ["no teacher", "all three"]
    results = {
        name: [Scores({"box": value}, {"box": [[(value, 1)]]}) for value in values]
        for name, values in (("no teacher", (0.1, 0.2)), ("all three", (0.5, 0.7)))
    }
    text = table(results, rows, Scores({"box": 0.8}))
    assert "| the teacher | 80.0 | |" in text
    assert "| all three | 60.0 ± 14.1 | tables 3 and 4: 41.9 |" in text
    assert "- box: all three beats no teacher by +45.0 (+30.0 to +60.0)." in text
    assert "no teacher beats" not in text


def test_rows_of_the_paper_differ_in_one_thing_each():
    rows = {row.name: row for row in ROWS}
    full = rows["all three"]
    assert full.losses == (1, 1, 1, 1)
    assert rows["all three, random prompts"].losses == full.losses
    assert not rows["all three, random prompts"].hard_prompts
    assert [rows[name].losses for name in ("output", "output + embedding")] == [(0, 0, 1, 1), (1, 0, 1, 1)]
    assert rows[rows["all three, quantized"].quantized_from] == full
    assert {row.paper.rpartition(" ")[2] for row in ROWS if row.paper} == {
        "40.5",
        "41.6",
        "41.7",
        "41.4",
        "41.9",
        "41.3",
    }
