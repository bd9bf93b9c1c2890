"""sam_edge.studies.repeats: every arm by every seed, once, and what is said of the scores."""

import pytest

from sam_edge.errors import SamEdgeError
from sam_edge.studies.repeats import Scores, as_dict, beats, cells, difference, mean_and_spread, points, repeat

ARMS = ("one", "two", "three")


def score(arm, seed):
    return Scores({"box": 0.5 + 0.1 * seed, "point": float(len(arm))}, {"box": [[(0.5 * seed, 2)]]})


def boxes(*values):
    """Scores by box of several seeds."""
    return [Scores({"box": value}) for value in values]


def test_a_killed_comparison_runs_only_what_is_missing(tmp_path):
    calls, said = [], []

    def run(arm, seed):
        calls.append((arm, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(arm, seed)

    log = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        repeat(ARMS, range(2), run, log, {"steps": 1})
    # every arm has its first seed before any has its second
    assert [seed for _, seed in calls] == [0, 0, 0, 1]
    with log.open("a") as file:
        file.write('{"arm": "cut')
    again = []
    run_again = lambda arm, seed: again.append((arm, seed)) or score(arm, seed)  # noqa: E731
    results = repeat(ARMS, range(2), run_again, log, {"steps": 1}, said.append)
    assert again == [(arm, 1) for arm in ARMS]
    assert results == {arm: [score(arm, 0), score(arm, 1)] for arm in ARMS}
    assert said[0].startswith("4/6 one, seed 1, ")
    # nothing that was written after the cut is lost
    again = repeat(ARMS, range(2), pytest.fail, log, {"steps": 1})
    assert again == results
    assert [scores.totals for scores in again["one"]] == [{"box": [[[0.0, 2]]]}, {"box": [[[0.5, 2]]]}]
    assert [scores.totals for scores in results["one"]] == [scores.totals for scores in again["one"]]


def test_results_under_other_settings_are_refused(tmp_path):
    log = tmp_path / "scores.jsonl"
    repeat(["one"], [0], score, log, {"steps": 1})
    with pytest.raises(SamEdgeError, match="other settings"):
        repeat(["one"], [0], score, log, {"steps": 2})


def test_mean_and_standard_deviation_are_over_seeds():
    scores = boxes(0.2, 0.4, 0.6)
    assert mean_and_spread(scores, "box") == pytest.approx((0.4, 0.2))
    assert mean_and_spread(scores[:1], "box") == (0.2, 0.0)
    assert cells(scores) == ["40.0 ± 20.0"]
    assert as_dict({"one": scores})["one"]["box"]["scores"] == [0.2, 0.4, 0.6]


def test_one_beats_another_by_more_than_both_spreads_together():
    low, high = boxes(0.0, 0.2), boxes(0.3, 0.5)
    # means 0.3 apart, spreads 0.141 each
    assert beats(high, low, "box")
    assert not beats(low, high, "box")
    assert not beats(high[:1], low, "box")
    assert not beats(boxes(0.28, 0.48), low, "box")


def test_where_pictures_are_known_their_differences_decide():
    """Two points ahead on every picture: sure, though pictures differ by more, and by the seed."""
    pictures = [0.1 * number for number in range(10)]

    def arm(ahead):
        return [
            Scores({"box": 0.45 + ahead}, {"box": [[(value + ahead + 0.001 * seed, 1) for value in pictures]]})
            for seed in range(2)
        ]

    better, worse = arm(0.02), arm(0.0)
    assert beats(better, worse, "box")
    assert not beats(worse, better, "box")
    assert points(difference(better, worse, "box")).startswith("+2.0 (+2.0 to +2.0)")
    assert difference(boxes(0.1), better, "box") is None
    # of one seed each nothing is said
    assert not beats(better[:1], worse[:1], "box")
