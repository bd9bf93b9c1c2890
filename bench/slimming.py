"""SlimSAM's tables 2 to 6 and figure 6, run again on any model: ours beside the paper's, mean and spread over seeds.

What compresses and what evaluates is handed in (`measure`), so that this file only says what is compared.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Stage = Literal["first", "last"]


@dataclass(frozen=True)
class Variant:
    """One way to compress: what a row of a table stands for."""

    ratio: float = 0.77
    schedule: str = "alternate"
    importance: str = "disturbed-taylor"
    ranking: str = "global"
    normalization: str = "gaussian"
    align_bottleneck: bool = True
    """Whether stage 2 aligns bottleneck features, not the final embedding alone."""
    align_embedding: bool = True
    """Whether stage 4 aligns embedding features, not the final embedding alone."""
    data: float = 1.0
    """Share of the pictures that are trained on, with as many steps."""
    scratch: bool = False
    """Random weights of the pruned shape instead of the pruned ones."""
    stage: Stage = "last"
    """Which half of the alternate schedule is measured; the one-step schedule has the last alone."""


@dataclass(frozen=True)
class Row:
    """A row of a paper's table."""

    label: str
    variant: Variant
    paper: float
    """Mean IoU by one point, in percent, on SA-1B from SAM-B."""


@dataclass(frozen=True)
class Table:
    """A table or figure of the paper."""

    title: str
    rows: tuple[Row, ...]


def _two(ratio: float, scores: tuple[float, ...]) -> tuple[Row, ...]:
    name = f"{ratio:.0%}"
    variants = (
        ("scratch distillation", Variant(ratio, "one-step", "random", "local", scratch=True)),
        ("random pruning", Variant(ratio, "one-step", "random", "local")),
        ("magnitude pruning", Variant(ratio, "one-step", "magnitude", "local")),
        ("hessian pruning", Variant(ratio, "one-step", "hessian", "local")),
        ("Taylor pruning", Variant(ratio, "one-step", "taylor", "local")),
        ("SlimSAM", Variant(ratio)),
    )
    return tuple(Row(f"{name} {label}", v, paper) for (label, v), paper in zip(variants, scores, strict=True))


TABLES: dict[str, Table] = {
    "2": Table(
        "Table 2: structural pruning methods",
        (
            *_two(0.5, (1.63, 71.03, 69.96, 71.01, 71.15, 72.33)),
            *_two(0.77, (1.34, 62.58, 61.60, 63.56, 64.26, 67.40)),
        ),
    ),
    "3": Table(
        "Table 3: Taylor importance on labels and disturbed",
        (
            Row("one-step, Taylor", Variant(schedule="one-step", importance="taylor", ranking="local"), 62.04),
            Row("one-step, disturbed Taylor", Variant(schedule="one-step", ranking="local"), 62.31),
            Row("alternate, Taylor", Variant(importance="taylor"), 63.63),
            Row("alternate, disturbed Taylor", Variant(), 64.48),
        ),
    ),
    "4": Table(
        "Table 4: intermediate aligning",
        (
            Row("step 1, final embeddings", Variant(align_bottleneck=False, stage="first"), 65.10),
            Row("step 1, + bottleneck features", Variant(stage="first"), 66.32),
            Row("step 2, final embeddings", Variant(align_embedding=False), 63.91),
            Row("step 2, + embedding features", Variant(), 64.48),
        ),
    ),
    "5": Table(
        "Table 5: local and global pruning",
        (
            Row("local", Variant(ranking="local"), 64.38),
            Row("global, mean", Variant(normalization="mean"), 63.64),
            Row("global, max", Variant(normalization="max"), 64.35),
            Row("global, sum", Variant(normalization="sum"), 63.55),
            Row("global, Gaussian", Variant(), 64.48),
            Row("global, standardization", Variant(normalization="standardization"), 64.14),
        ),
    ),
    "6": Table(
        "Table 6: less data, as many steps",
        (
            Row("50%, all pictures", Variant(0.5), 72.33),
            Row("50%, half", Variant(0.5, data=0.5), 71.89),
            Row("50%, a fifth", Variant(0.5, data=0.2), 69.79),
            Row("77%, all pictures", Variant(), 67.40),
            Row("77%, half", Variant(data=0.5), 64.47),
            Row("77%, a fifth", Variant(data=0.2), 61.72),
        ),
    ),
    "fig6": Table(
        "Figure 6: one-step and alternate",
        (
            Row("one-step, disturbed Taylor", Variant(schedule="one-step", ranking="local"), 62.31),
            Row("alternate, disturbed Taylor", Variant(), 64.48),
            Row("one-step, random", Variant(schedule="one-step", importance="random", ranking="local"), float("nan")),
            Row("alternate, random", Variant(importance="random"), float("nan")),
        ),
    ),
}
"""The paper's numbers; of figure 6 it tells the gain of random importance alone, 3.5 points."""


@dataclass(frozen=True)
class Result:
    """A variant's scores over seeds."""

    scores: tuple[float, ...]
    """Mean IoU, 0 to 1, one per seed."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 of a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


def run_tables(
    names: Iterable[str],
    seeds: Sequence[int],
    measure: Callable[[Variant, int], float],
    on_result: Callable[[int, int, str], None] | None = None,
) -> dict[Variant, Result]:
    """Measure every variant that the named tables need, once per seed; seed by seed, so that a cut run is balanced."""
    rows = {row.variant: row.label for name in names for row in TABLES[name].rows}
    scores: dict[Variant, list[float]] = {variant: [] for variant in rows}
    done, total = 0, len(rows) * len(seeds)
    for seed in seeds:
        for variant, label in rows.items():
            scores[variant].append(measure(variant, seed))
            done += 1
            if on_result is not None:
                on_result(done, total, f"{label}, seed {seed}: mIoU {scores[variant][-1]:.3f}")
    return {variant: Result(tuple(found)) for variant, found in scores.items()}


def as_markdown(names: Iterable[str], results: Mapping[Variant, Result], unpruned: float, protocol: str) -> str:
    """The tables, ours beside the paper's, both in percent, with what each row lost of the unpruned model."""
    parts = [f"{protocol} Unpruned: {100 * unpruned:.2f}. Spread is the standard deviation over seeds.\n"]
    for name in names:
        table = TABLES[name]
        parts.append(f"## {table.title}\n")
        parts.append("| | ours, mIoU % | spread | lost | paper, mIoU % |\n|---|---|---|---|---|")
        for row in table.rows:
            result = results[row.variant]
            paper = "" if row.paper != row.paper else f"{row.paper:.2f}"
            lost = 100 * (unpruned - result.mean)
            parts.append(
                f"| {row.label} | {100 * result.mean:.2f} | {100 * result.spread:.2f} | {lost:.2f} | {paper} |"
            )
        parts.append(f"\n{_order(table, results)}\n")
    return "\n".join(parts)


def _order(table: Table, results: Mapping[Variant, Result]) -> str:
    """Pairs of rows that the paper orders one way and we the other, beyond both spreads."""
    known = [row for row in table.rows if row.paper == row.paper]
    against = []
    for index, a in enumerate(known):
        for b in known[index + 1 :]:
            better, worse = (a, b) if a.paper > b.paper else (b, a)
            gap = results[worse.variant].mean - results[better.variant].mean
            if gap > results[worse.variant].spread + results[better.variant].spread:
                against.append(f"{worse.label} beats {better.label} by {100 * gap:.2f}")
    return "Against the paper's order, beyond the spread: " + ("; ".join(against) if against else "nothing") + "."


def as_dict(names: Iterable[str], results: Mapping[Variant, Result]) -> dict[str, list[dict[str, object]]]:
    """The same for JSON."""
    return {
        name: [
            {
                "label": row.label,
                "variant": asdict(row.variant),
                "mean": results[row.variant].mean,
                "spread": results[row.variant].spread,
                "scores": list(results[row.variant].scores),
                "paper": None if row.paper != row.paper else row.paper / 100,
            }
            for row in TABLES[name].rows
        ]
        for name in names
    }
