"""The arms of a comparison, each by several seeds: scores kept line by line, then mean and spread.

What runs an arm is handed in. Spread is the standard deviation over seeds (n - 1).
"""

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from sam_edge.errors import BenchError

LOG = "scores.jsonl"
"""The log's name in a folder of results."""

Scores = dict[str, float]
"""Of one run: measure -> value."""

Results = Mapping[str, Sequence[Scores]]
"""Arm -> its scores, one per seed."""


def repeat(
    arms: Sequence[str],
    seeds: Sequence[int],
    run: Callable[[str, int], Scores],
    log: Path,
    settings: Mapping[str, Any],
    on_result: Callable[[str], None] | None = None,
    on_run: Callable[[int, int, str], None] | None = None,
) -> dict[str, list[Scores]]:
    """Scores of every arm by every seed; `log` keeps them, and what it holds already is not run again.

    Seeds go round before arms do: a comparison that was cut short compares all arms by the seeds it has.

    Args:
        settings: what the arms have in common; results under others are refused.
        on_run: called before each run, with the runs behind it, those in all, and its name.

    Raises:
        BenchError: `log` holds results under other settings.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    done: dict[tuple[str, int], Scores] = {}
    for entry in _read(log):
        if entry["settings"] != digest:
            raise BenchError(f"{log} holds results under other settings: choose another --out or delete it.")
        done[entry["arm"], entry["seed"]] = entry["scores"]
    total = len(arms) * len(seeds)
    for number, (seed, arm) in enumerate(((seed, arm) for seed in seeds for arm in arms), 1):
        if (arm, seed) in done:
            continue
        name = f"{arm}, seed {seed}"
        if on_run is not None:
            on_run(number - 1, total, name)
        started = perf_counter()
        scores = done[arm, seed] = run(arm, seed)
        line = {"arm": arm, "seed": seed, "scores": scores, "settings": digest}
        seconds = round(perf_counter() - started, 1)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "seconds": seconds}) + "\n")
        if on_result is not None:
            found = ", ".join(f"{measure} {value:.3f}" for measure, value in scores.items())
            on_result(f"{number}/{total} {name}, {seconds:.0f} s: {found}")
    return {arm: [done[arm, seed] for seed in seeds] for arm in arms}


def _read(log: Path) -> list[dict[str, Any]]:
    """What the log holds; a line that was cut off when a run was killed is taken away."""
    whole = (
        [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if log.exists() else []
    )
    if log.exists():
        os.truncate(log, sum(map(len, whole)))
    return [json.loads(line) for line in whole]


def mean_and_spread(scores: Sequence[Scores], measure: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the spread of a single one is 0."""
    values = [score[measure] for score in scores]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def beats(better: Sequence[Scores], worse: Sequence[Scores], measure: str) -> bool:
    """Whether the first is ahead by more than both spreads together; of a single seed nothing is known."""
    if min(len(better), len(worse)) < 2:
        return False
    (ahead, its_spread), (behind, other_spread) = (mean_and_spread(scores, measure) for scores in (better, worse))
    return ahead - behind > its_spread + other_spread


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
