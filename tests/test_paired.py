"""sam_edge.paired: the difference is that of the means, and the interval knows what varies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_edge.paired import Difference, compared, paired_difference


def totals(scores):
    """What pictures with these masks' scores sum to."""
    return [(float(np.sum(image)), len(image)) for image in scores]


def pictures(rng, count, spread=0.2):
    """Scores of one to nine masks in each picture."""
    return [rng.normal(0.5, spread) + rng.normal(0, 0.1, rng.integers(1, 10)) for _ in range(count)]


@given(st.integers(0, 2**30), st.integers(1, 12), st.integers(1, 3))
@settings(max_examples=30)
def test_the_mean_is_that_of_the_masks_averaged_over_data_sets_and_runs(seed, count, runs):
    rng = np.random.default_rng(seed)
    sets = [pictures(rng, count), pictures(rng, 3)]
    mine = [[[image + run for image in one] for one in sets] for run in range(runs)]
    found = paired_difference([[totals(one) for one in run] for run in mine], [[totals(one) for one in sets]], draws=50)
    wanted = np.mean([np.mean([np.mean(np.concatenate(one)) for one in run]) for run in mine])
    wanted -= np.mean([np.mean(np.concatenate(one)) for one in sets])
    assert found.mean == pytest.approx(wanted)


def test_pairs_find_what_bare_means_lose():
    """A hundredth everywhere: hidden by what pictures differ by, and sure where they are the same ones."""
    rng = np.random.default_rng(1)
    other = pictures(rng, 60)
    mine = [image + 0.01 for image in other]
    same = paired_difference([[totals(mine)]], [[totals(other)]])
    assert same.says() == "shown"
    assert same.low == pytest.approx(same.high) == pytest.approx(0.01)
    noisy = [image + 0.01 + rng.normal(0, 0.2) for image in other]
    assert paired_difference([[totals(noisy)]], [[totals(other)]]).says() == "not shown"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        other = pictures(rng, 40)
        mine = [image + rng.normal(0.03, 0.1) for image in other]
        found = paired_difference([[totals(mine)]], [[totals(other)]], draws=300, seed=trial)
        held += found.low <= 0.03 <= found.high
    assert 0.88 <= held / 200 <= 0.98


def test_runs_that_differ_widen_the_interval():
    rng = np.random.default_rng(3)
    other = pictures(rng, 50)
    steady = [[totals([image + 0.02 for image in other])] for _ in range(3)]
    shaky = [[totals([image + 0.02 + shift for image in other])] for shift in (-0.2, 0.0, 0.2)]
    narrow, wide = (paired_difference(arm, [[totals(other)]]) for arm in (steady, shaky))
    assert narrow.says() == "shown"
    assert wide.says() == "not shown"
    assert wide.mean == pytest.approx(narrow.mean)


def test_what_a_seed_does_to_both_arms_does_not_widen_the_interval():
    """A quantized model is its seed's model: seeds differ far more than the two do."""
    rng = np.random.default_rng(4)
    pictured = pictures(rng, 50)
    models = [[image + shift for image in pictured] for shift in (-0.2, 0.0, 0.2)]
    lost = (0.001, 0.002, 0.0)
    quantized = [[image - less for image in model] for model, less in zip(models, lost, strict=True)]
    found = paired_difference(*([[totals(one)] for one in arm] for arm in (quantized, models)))
    assert found.mean == pytest.approx(-0.001)
    assert (found.low, found.high) == (pytest.approx(-0.002, abs=1e-4), pytest.approx(0, abs=1e-4))


def test_runs_of_other_seeds_are_refused():
    run = [[(1.0, 2)]]
    with pytest.raises(ValueError, match="2 and 3 runs"):
        paired_difference([run] * 2, [run] * 3)


def test_the_interval_covers_the_truth_over_seeds_too():
    """Ten seeds move both arms, and each arm by itself."""
    rng = np.random.default_rng(5)
    other = pictures(rng, 40)
    held = 0
    for trial in range(200):
        both, own = rng.normal(0, 0.1, 10), rng.normal(0, 0.02, (2, 10))
        mine, theirs = ([[totals([image + s for image in other])] for s in both + each] for each in own)
        found = paired_difference(mine, theirs, draws=300, seed=trial)
        held += found.low <= 0 <= found.high
    assert 0.85 <= held / 200 <= 0.98


def test_what_the_interval_says_of_a_claim():
    ahead, level, behind = Difference(0.02, 0.01, 0.03), Difference(0.0, -0.01, 0.01), Difference(-0.02, -0.03, -0.01)
    assert [one.says() for one in (ahead, level, behind)] == ["shown", "not shown", "opposite"]
    # less than a margin behind
    assert [one.says(0.02) for one in (ahead, level, behind)] == ["shown", "shown", "not shown"]
    assert behind.says(0.005) == "opposite"


def test_pairs_of_arms_are_compared_where_both_were_run():
    arms = {name: [{"box": [[(value, 1), (value, 1)]]}] for name, value in (("a", 0.5), ("b", 0.25))}
    (found,) = compared(arms, [("a", "b", "box"), ("a", "c", "box"), ("c", "b", "box")])
    assert found == {
        "mine": "a",
        "other": "b",
        "measure": "box",
        "mean": 0.25,
        "low": 0.25,
        "high": 0.25,
        "runs": 1,
        "pictures": 2,
    }


def test_other_masks_are_refused():
    with pytest.raises(ValueError, match="same masks"):
        paired_difference([[[(1.0, 2)]]], [[[(1.0, 3)]]])
