"""sam_edge.bench.distillation: every row by every seed, once, beside the paper's."""

import pytest

from sam_edge.bench.distillation import ROWS, ablate, choose, mean_and_spread, table, write_csv


def score(row, seed):
    return {"photos box": 0.5 + 0.1 * seed, "photos point": float(len(row.name))}


def test_a_killed_ablation_runs_only_what_is_missing(tmp_path):
    rows, calls = ROWS[:3], []

    def run(row, seed):
        calls.append((row.name, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(row, seed)

    log = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ablate(rows, range(2), run, log)
    # every row has its first seed before any has its second
    assert [seed for _, seed in calls] == [0, 0, 0, 1]
    with log.open("a") as file:
        file.write('{"row": "cut')
    again = []
    results = ablate(rows, range(2), lambda row, seed: again.append((row.name, seed)) or score(row, seed), log)
    assert again == [(row.name, 1) for row in rows]
    assert results == {row.name: [score(row, 0), score(row, 1)] for row in rows}


def test_the_table_gives_mean_and_half_the_range_beside_the_papers_value(tmp_path):
    rows = choose(["all three", "no teacher"])
    assert [row.name for row in rows] == ["no teacher", "all three"]
    results = ablate(rows, range(3), score, tmp_path / "log")
    assert mean_and_spread(results["all three"], "photos box") == pytest.approx((0.6, 0.1))
    text = table(results, rows)
    assert "| all three | 0.600 ± 0.100 | 9.000 ± 0.000 | tables 3 and 4: 41.9 |" in text
    write_csv(results, tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == "row,run,photos box,photos point"
    assert len(lines) == 1 + 2 * 3


def test_rows_of_the_paper_differ_in_one_thing_each():
    rows = {row.name: row for row in ROWS}
    full = rows["all three"]
    assert full.weights == (1, 1, 1, 1)
    assert rows["all three, random prompts"].weights == full.weights
    assert not rows["all three, random prompts"].hard_prompts
    assert [rows[name].weights for name in ("output", "output + embedding")] == [(0, 0, 1, 1), (1, 0, 1, 1)]
    assert rows[rows["all three, quantized"].quantized_from] == full
    assert {row.paper.rpartition(" ")[2] for row in ROWS if row.paper} == {
        "40.5",
        "41.6",
        "41.7",
        "41.4",
        "41.9",
        "41.3",
    }
