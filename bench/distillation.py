"""TinySAM's ablations, tables 3 and 4, for any teacher, student and pictures: rows, seeds, ours beside the paper's.

Training and evaluation are handed in. Results are kept one line each, so that a killed ablation continues.
"""

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AblationRow:
    """One row: what is learnt from, all else alike."""

    name: str
    """What it is called here."""
    weights: tuple[float, float, float, float]
    """Of the embedding, the tokens, the output and the labels: alpha, beta, gamma of eq. 4, and eq. 5's rest."""
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
    AblationRow("all three", (1, 1, 1, 1), paper="tables 3 and 4: 41.9"),
    AblationRow("all three, quantized", (1, 1, 1, 1), quantized_from="all three", paper="table 3: 41.3"),
)
"""The paper's tables say nothing of labels alone or the embedding alone; its rows of table 4 have hard prompts."""

Scores = dict[str, float]
"""Of one student: measure -> value."""


def choose(names: Sequence[str]) -> list[AblationRow]:
    """The rows of these names, in the table's order; all where none is named.

    Raises:
        KeyError: an unknown name.
    """
    known = {row.name: row for row in ROWS}
    wanted = {known[name].name for name in names}
    return [row for row in ROWS if not wanted or row.name in wanted]


def ablate(
    rows: Sequence[AblationRow],
    seeds: Sequence[int],
    run: Callable[[AblationRow, int], Scores],
    log: Path,
) -> dict[str, list[Scores]]:
    """Scores of every row by every seed; `log` keeps them, and what it holds already is not run again.

    Seeds go round before rows do: a table that was cut short compares all rows by the seeds it has.
    """
    done = {(entry["row"], entry["seed"]): entry["scores"] for entry in _read(log)}
    for seed in seeds:
        for row in rows:
            if (row.name, seed) not in done:
                scores = done[row.name, seed] = run(row, seed)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"row": row.name, "seed": seed, "scores": scores}) + "\n")
    return {row.name: [done[row.name, seed] for seed in seeds] for row in rows}


def _read(log: Path) -> Iterable[dict]:
    if not log.exists():
        return
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            # cut off when the run was killed
            continue


def mean_and_spread(scores: Sequence[Scores], measure: str) -> tuple[float, float]:
    """Mean over seeds, and half the distance of the largest from the smallest."""
    values = [score[measure] for score in scores]
    return statistics.fmean(values), (max(values) - min(values)) / 2


def table(results: dict[str, list[Scores]], rows: Sequence[AblationRow]) -> str:
    """Ours beside the paper's, as Markdown: mean ± half the range over seeds."""
    measures = list(next(iter(results.values()))[0])
    lines = [f"| row | {' | '.join(measures)} | the paper's AP |", f"|{'---|' * (len(measures) + 2)}"]
    for row in rows:
        cells = ["{:.3f} ± {:.3f}".format(*mean_and_spread(results[row.name], measure)) for measure in measures]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.paper} |")
    return "\n".join(lines) + "\n"


def write_csv(results: dict[str, list[Scores]], file: Path) -> None:
    """Every score of every seed."""
    measures = list(next(iter(results.values()))[0])
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["row", "run", *measures])
        for name, scores in results.items():
            for number, score in enumerate(scores):
                writer.writerow([name, number, *(f"{score[measure]:.5f}" for measure in measures)])
