"""The arms of a comparison, each by several seeds: scores kept line by line, then mean and spread, and differences.

What runs an arm is handed in. Spread is the standard deviation over seeds (n - 1). Of two arms that were measured on
the same pictures the difference has an interval over pictures and seeds (`sam_edge.paired`).
"""

import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from sam_edge.journal import Journal
from sam_edge.paired import Difference, Totals, compared, paired_difference

LOG = "scores.jsonl"
"""The log's name in a folder of results."""
PARTS = ("scores", "totals", "sizes")
"""What a line of the log keeps of a run's `Scores`."""


class Scores(dict[str, float]):
    """Of one run: measure -> value."""

    def __init__(
        self,
        values: Mapping[str, float],
        totals: Mapping[str, Sequence[Totals]] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        """`totals`: by measure and data set, what each picture scored, where that is known; `sizes`: what is no score,
        such as the parameters of what was measured."""
        super().__init__(values)
        self.sizes = dict(sizes or {})
        # as JSON gives them back
        self.totals = {
            name: [[list(each) for each in of_set] for of_set in sets] for name, sets in (totals or {}).items()
        }


Results = Mapping[str, Sequence[Scores]]
"""Arm -> its scores, one per seed."""


def repeat(
    arms: Sequence[str],
    seeds: Sequence[int],
    run: Callable[[str, int], Scores],
    log: Path,
    settings: Mapping[str, Any],
    on_result: Callable[[str], None] | None = None,
) -> dict[str, list[Scores]]:
    """Scores of every arm by every seed; `log` keeps them, and what it holds already is not run again.

    Seeds go round before arms do: a comparison that was cut short compares all arms by the seeds it has.

    Args:
        settings: what the arms have in common; results under others are refused.

    Raises:
        SamEdgeError: `log` holds results under other settings, or cannot be read or written.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    header = {"key": digest, "settings": json.loads(json.dumps(settings, default=str))}
    journal = Journal(log, header, "run", PARTS, option="--out")
    done = {(one["arm"], one["seed"]): Scores(*(one[part] for part in PARTS)) for one in journal.lines()}
    total = len(arms) * len(seeds)
    with journal:
        for number, (seed, arm) in enumerate(((seed, arm) for seed in seeds for arm in arms), 1):
            if (arm, seed) in done:
                continue
            name = f"{arm}, seed {seed}"
            started = perf_counter()
            scores = done[arm, seed] = run(arm, seed)
            seconds = round(perf_counter() - started, 1)
            told = dict(zip(PARTS, (scores, scores.totals, scores.sizes), strict=True))
            journal.add({"run": name, "arm": arm, "seed": seed, **told, "seconds": seconds})
            if on_result is not None:
                found = ", ".join(f"{measure} {value:.3f}" for measure, value in scores.items())
                on_result(f"{number}/{total} {name}, {seconds:.0f} s: {found}")
    return {arm: [done[arm, seed] for seed in seeds] for arm in arms}


def mean_and_spread(scores: Sequence[Mapping[str, float]], measure: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the spread of a single one is 0."""
    values = [score[measure] for score in scores]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def difference(mine: Sequence[Scores], other: Sequence[Scores], measure: str) -> Difference | None:
    """How far the first is ahead, with its interval; None where it is not known what each picture scored."""
    found = [[scores.totals.get(measure) for scores in arm] for arm in (mine, other)]
    if any(totals is None for arm in found for totals in arm):
        return None
    return paired_difference(found[0], found[1])  # type: ignore[arg-type]


def beats(better: Sequence[Scores], worse: Sequence[Scores], measure: str) -> bool:
    """Whether the first is ahead beyond chance; of a single seed nothing is known.

    That is by more than both spreads together, since drawing two or three seeds anew makes too little of them; and,
    where it is known what each picture scored, with the whole interval of the difference.
    """
    if min(len(better), len(worse)) < 2:
        return False
    (mean, its_spread), (behind, other_spread) = (mean_and_spread(scores, measure) for scores in (better, worse))
    ahead = difference(better, worse, measure)
    return mean - behind > its_spread + other_spread and (ahead is None or ahead.low > 0)


def points(ahead: Difference) -> str:
    """A difference in points of a percent, with its interval."""
    return f"{100 * ahead.mean:+.1f} ({100 * ahead.low:+.1f} to {100 * ahead.high:+.1f})"


def differences(results: Results, pairs: Iterable[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """For JSON: of arms by their names and a measure, how far the first is ahead; see `sam_edge.paired.compared`."""
    arms = {arm: [run.totals for run in scores] for arm, scores in results.items()}
    return compared(arms, pairs)  # type: ignore[arg-type]


def cells(scores: Sequence[Scores]) -> list[str]:
    """`mean ± spread` of every measure, in percent."""
    found = (mean_and_spread(scores, measure) for measure in scores[0])
    return [f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in found]


def as_dict(results: Results) -> dict[str, Any]:
    """For JSON: mean, spread and every score of each arm and measure."""
    return {
        arm: {
            measure: dict(
                zip(("mean", "spread"), mean_and_spread(scores, measure), strict=True),
                scores=[score[measure] for score in scores],
            )
            for measure in scores[0]
        }
        for arm, scores in results.items()
    }
