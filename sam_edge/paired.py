"""How far one model is ahead of another on the same pictures, and how sure that is.

Masks of one picture fail together, and a hard picture is hard for both models. So differences are taken on the same
masks, and whole pictures are drawn anew (the bootstrap of Efron, 1979): the interval holds what other pictures of the
same kind would have shown. Where arms have several runs, by seed, seeds are drawn anew too, the same ones of both: runs
of one seed begin alike and see the same views, or one is made of the other (a model, and that model quantized), so what
a seed does to both is not what sets them apart.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

DRAWS = 2000
"""Sets of pictures drawn."""

Verdict = Literal["shown", "not shown", "opposite"]
"""Of a claim: the interval is where the claim says, on both sides of its border, or where it says the contrary."""
Totals = Sequence[tuple[float, int]]
"""Of one data set, by picture: the sum of its masks' scores, and how many there are."""


@dataclass(frozen=True)
class Difference:
    """Of two arms' scores, the first's less the second's, with the interval that holds `share` of what was drawn."""

    mean: float
    low: float
    high: float

    def says(self, margin: float = 0.0) -> Verdict:
        """Of the claim that the first is ahead, or less than `margin` behind: what the whole interval agrees to."""
        if self.low > -margin:
            return "shown"
        return "opposite" if self.high < -margin else "not shown"


def paired_difference(
    mine: Sequence[Sequence[Totals]],
    other: Sequence[Sequence[Totals]],
    *,
    share: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """The difference of the means over masks, averaged over data sets and runs.

    Args:
        mine, other: by run, by data set, the totals of the same pictures. Runs in one place have one seed; a single run
            is compared with every run of the other.

    Raises:
        ValueError: other pictures, or other masks of them; several runs of both, but more of one.
    """
    if len(mine) != len(other) and min(len(mine), len(other)) != 1:
        raise ValueError(f"the two have {len(mine)} and {len(other)} runs, so they cannot be of the same seeds.")
    counts = [np.array([masks for _, masks in totals], float) for totals in mine[0]]
    for run in (*mine, *other):
        if [[masks for _, masks in totals] for totals in run] != [list(map(int, masks)) for masks in counts]:
            raise ValueError("the two were not measured on the same masks.")
    rng = np.random.default_rng(seed)
    # how often each picture is drawn; the first row is every picture once, which gives the difference itself
    drawn = [np.vstack([np.ones(len(n)), rng.multinomial(len(n), np.full(len(n), 1 / len(n)), draws)]) for n in counts]
    by_run = _means(mine, drawn, counts) - _means(other, drawn, counts)
    chosen = rng.integers(len(by_run), size=by_run.shape)
    chosen[:, 0] = np.arange(len(by_run))
    ahead = np.take_along_axis(by_run, chosen, axis=0).mean(0)
    low, high = np.quantile(ahead[1:], [(1 - share) / 2, (1 + share) / 2])
    return Difference(float(ahead[0]), float(low), float(high))


def compared(
    arms: Mapping[str, Sequence[Mapping[str, Sequence[Totals]]]], pairs: Iterable[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """Differences for JSON: of each pair of arms, by a measure, what `paired_difference` says, runs and pictures.

    Args:
        arms: by name and run, of each measure the totals by data set; a pair of which one was not run is left out.
        pairs: the first arm, the second, and the measure.
    """
    found = []
    for mine, other, measure in pairs:
        if mine in arms and other in arms:
            sides = [[run[measure] for run in arms[name]] for name in (mine, other)]
            of = {"mine": mine, "other": other, "measure": measure}
            counts = {"runs": max(map(len, sides)), "pictures": sum(map(len, sides[0][0]))}
            found.append({**of, **asdict(paired_difference(*sides)), **counts})
    return found


def _means(
    runs: Sequence[Sequence[Totals]],
    drawn: Sequence[Float[np.ndarray, "draws _"]],
    counts: Sequence[Float[np.ndarray, "_"]],
) -> Float[np.ndarray, "runs draws"]:
    """An arm's score in each run by each draw of pictures, averaged over data sets."""
    return np.mean(
        [
            [times @ np.array([total for total, _ in totals]) / (times @ n) for totals in of_set]
            for times, n, of_set in zip(drawn, counts, zip(*runs, strict=True), strict=True)
        ],
        axis=0,
    )
