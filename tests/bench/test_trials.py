"""sam_edge.bench.trials: the comparison can be believed, on any machine that is not busy beyond measure."""

import numpy as np
import pytest

from sam_edge.bench import trials
from sam_edge.bench.latency import Ratio


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """On samples whose distribution is known, with a machine's changes of speed common to both of a round."""
    rng = np.random.default_rng(0)
    speeds = rng.lognormal(0, 0.3, (80, 60))
    first, second = (speeds * rng.lognormal(0, 0.05, speeds.shape) for _ in range(2))
    ratios = [Ratio.of(*pair) for pair in zip(second, first, strict=True)]
    assert 0.88 <= np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios]) < 1
    slower = [Ratio.of(1.05 * b, a) for a, b in zip(first, second, strict=True)]
    assert np.mean([ratio.low > 1 for ratio in slower]) > 0.9


def test_a_burning_core_is_noticed_and_trials_are_counted() -> None:
    found = trials.run(trials=2, rounds=8, burn_s=0.5)
    assert len(found.alike) == len(found.slower) == 2
    if found.burning.other_cores is not None:
        assert "kept" in (found.burning.words() or "")
    assert 0 <= found.held <= 2


@pytest.mark.slow
def test_a_contender_against_itself_and_one_slower_by_a_twentieth() -> None:
    found = trials.main(["--trials", "20", "--rounds", "200"])
    assert found["held"] >= 17
    assert found["found"] >= 17
    assert found["burning"]["other_cores"] is None or found["burning"]["other_cores"] > 0.1
