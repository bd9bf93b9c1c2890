"""SlimSAM's tables 2 to 6 and figure 6, run again on any model: ours beside the paper's, mean and spread over seeds.

What compresses and what evaluates is handed in, so that this file only says what is compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from sam_edge.errors import BenchError
from sam_edge.studies.repeats import Results, Scores, beats, cells, difference, points
from sam_edge.studies.repeats import as_dict as scores_as_dict

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

    @property
    def name(self) -> str:
        """The ratio, and all that is not as in the paper's best: the same for two rows that are one variant."""
        others = (f.name for f in fields(self) if f.name != "ratio" and getattr(self, f.name) != f.default)
        return ", ".join([f"ratio {self.ratio}", *(f"{name} {getattr(self, name)}" for name in others)])


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


def choose(names: Sequence[str], rows: Sequence[str], ratios: Sequence[float]) -> dict[str, Table]:
    """The named tables, all where none is named, with the rows whose label holds one of `rows`, at one of `ratios`.

    Raises:
        BenchError: a row or ratio that none of these tables has.
    """

    def wanted(row: Row, texts: Sequence[str], at: Sequence[float]) -> bool:
        return (not texts or any(text in row.label for text in texts)) and (not at or row.variant.ratio in at)

    tables = {name: TABLES[name] for name in names or TABLES}
    every = [row for table in tables.values() for row in table.rows]
    for given, texts, at in [(text, [text], []) for text in rows] + [(str(ratio), [], [ratio]) for ratio in ratios]:
        if not any(wanted(row, texts, at) for row in every):
            labels = ", ".join(dict.fromkeys(row.label for row in every))
            raise BenchError(f"no row of table {', '.join(tables)} is for {given}; there are: {labels}.")
    chosen = {
        name: replace(table, rows=tuple(row for row in table.rows if wanted(row, rows, ratios)))
        for name, table in tables.items()
    }
    return {name: table for name, table in chosen.items() if table.rows}


def variants(tables: Mapping[str, Table]) -> dict[str, Variant]:
    """Every variant that the tables need, once, by its name."""
    return {row.variant.name: row.variant for table in tables.values() for row in table.rows}


def as_markdown(tables: Mapping[str, Table], results: Results, unpruned: Scores, protocol: str) -> str:
    """The tables, ours beside the paper's, all in percent, with what each row has less than the unpruned model."""
    first = next(iter(unpruned))
    parts = [
        f"{protocol} mIoU in percent, mean ± standard deviation over seeds; to unpruned: the difference of {first}, "
        "with what holds 95 % of it over pictures and seeds.\n"
    ]
    for table in tables.values():
        parts.append(f"## {table.title}\n")
        parts.append(f"| | {' | '.join(unpruned)} | to unpruned | paper |\n|{'---|' * (len(unpruned) + 3)}")
        parts.append(f"| unpruned | {' | '.join(f'{100 * value:.1f}' for value in unpruned.values())} | | |")
        for row in table.rows:
            scores = results[row.variant.name]
            paper = "" if row.paper != row.paper else f"{row.paper:.2f}"
            ahead = difference(scores, [unpruned], first)
            to_unpruned = "" if ahead is None else points(ahead)
            parts.append(f"| {row.label} | {' | '.join(cells(scores))} | {to_unpruned} | {paper} |")
        parts += ["", *(_order(table, results, measure) for measure in ("point", "box")), ""]
    return "\n".join(parts)


def _order(table: Table, results: Results, measure: str) -> str:
    """Pairs of rows that differ beyond chance, as the paper orders them and against it."""
    known = [row for row in table.rows if row.paper == row.paper]
    along, against = [], []
    for index, a in enumerate(known):
        for b in known[index + 1 :]:
            if a.variant.ratio != b.variant.ratio:
                # another size: which is better is no question
                continue
            better, worse = (a, b) if a.paper > b.paper else (b, a)
            if beats(results[better.variant.name], results[worse.variant.name], measure):
                along.append(f"{better.label} beats {worse.label}")
            if beats(results[worse.variant.name], results[better.variant.name], measure):
                against.append(f"{worse.label} beats {better.label}")
    said = [
        f"{which}: {', '.join(pairs) or 'nothing'}"
        for which, pairs in (("as in the paper", along), ("against it", against))
    ]
    return f"- {measure}, beyond chance, {'; '.join(said)}."


def as_dict(tables: Mapping[str, Table], results: Results) -> dict[str, list[dict[str, Any]]]:
    """The same for JSON."""
    scores = scores_as_dict(results)
    return {
        name: [
            {
                "label": row.label,
                "variant": asdict(row.variant),
                "scores": scores[row.variant.name],
                "sizes": results[row.variant.name][0].sizes,
                "paper": None if row.paper != row.paper else row.paper / 100,
            }
            for row in table.rows
        ]
        for name, table in tables.items()
    }
