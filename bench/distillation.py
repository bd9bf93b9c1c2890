"""TinySAM's ablations, tables 3 and 4, for any teacher, student and pictures: rows, seeds, ours beside the paper's.

Training and evaluation are handed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sam_edge.bench.repeats import Results, Scores, beats, cells, difference, points


@dataclass(frozen=True)
class AblationRow:
    """One row: what is learnt from, all else alike."""

    name: str
    """What it is called here."""
    losses: tuple[int, int, int, int]
    """1 for those that are on, of the embedding, the tokens, the output (eq. 4) and the labels (eq. 5's rest)."""
    hard_prompts: bool = True
    """Prompts from the network's errors (eq. 6), or random ones."""
    from_scratch: bool = False
    """Without anything of the teacher's: neither its decoder nor its prompt encoder."""
    quantized_from: str | None = None
    """The row whose students are quantized; nothing is trained."""
    paper: str = ""
    """The paper's row and AP on COCO, where it has one."""


ROWS = (
    AblationRow("no teacher", (0, 0, 0, 1), hard_prompts=False, from_scratch=True),
    AblationRow("labels only", (0, 0, 0, 1), hard_prompts=False, paper="table 3, baseline (not defined): 40.5"),
    AblationRow("embedding only", (1, 0, 0, 0)),
    AblationRow("output", (0, 0, 1, 1), paper="table 4: 41.6"),
    AblationRow("output + embedding", (1, 0, 1, 1), paper="table 4: 41.7"),
    AblationRow("all three, random prompts", (1, 1, 1, 1), hard_prompts=False, paper="table 3: 41.4"),
    AblationRow("all three, no label loss", (1, 1, 1, 0)),
    AblationRow("all three", (1, 1, 1, 1), paper="tables 3 and 4: 41.9"),
    AblationRow("all three, quantized", (1, 1, 1, 1), quantized_from="all three", paper="table 3: 41.3"),
)
"""The paper has no row of labels alone, of the embedding alone or of eq. 4 alone; table 4's rows have hard prompts."""


def choose(names: Sequence[str]) -> list[AblationRow]:
    """The rows of these names, in the table's order; all where none is named.

    Raises:
        KeyError: an unknown name.
    """
    known = {row.name: row for row in ROWS}
    wanted = {known[name].name for name in names}
    return [row for row in ROWS if not wanted or row.name in wanted]


def table(results: Results, rows: Sequence[AblationRow], teacher: Scores) -> str:
    """Ours beside the paper's, as Markdown, in percent: mean ± standard deviation over seeds, and who is ahead of whom,
    with what holds 95 % of the difference over pictures and seeds."""
    lines = [f"| row | {' | '.join(teacher)} | the paper's AP |", f"|{'---|' * (len(teacher) + 2)}"]
    lines.append(f"| the teacher | {' | '.join(f'{100 * value:.1f}' for value in teacher.values())} | |")
    for row in rows:
        lines.append(f"| {row.name} | {' | '.join(cells(results[row.name]))} | {row.paper} |")
    verdicts = (
        f"- {measure}: {row.name} beats {other.name}{_by(results[row.name], results[other.name], measure)}."
        for measure in teacher
        for row in rows
        for other in rows
        if beats(results[row.name], results[other.name], measure)
    )
    return "\n".join([*lines, "", *verdicts]) + "\n"


def _by(better: Sequence[Scores], worse: Sequence[Scores], measure: str) -> str:
    ahead = difference(better, worse, measure)
    return "" if ahead is None else f" by {points(ahead)}"
