"""`python -m tests.campaign WORK`: everything that is done to sam-edge to see it break, and what came of it.

It goes on from what is in WORK, so that it can be run in pieces; `--report FILE` writes the counts of all that is done.
"""

import argparse
import signal
from collections import Counter
from pathlib import Path

from tests.campaign.base import make_base
from tests.campaign.forked import HANG_SECONDS, MEMORY_BYTES, import_all
from tests.campaign.found import LEFT, MENDED
from tests.campaign.fuzz import fuzz
from tests.campaign.inputs import KINDS
from tests.campaign.kills import CHAINS, kill, tries_of, trouble
from tests.campaign.leaks import leak
from tests.campaign.tally import Tally

PARTS = ("fuzz", "kills", "troubles", "leaks")


def campaign(
    work: Path, parts: list[str], *, seconds: float = float("inf"), share: float = 1.0, seed: int = 0
) -> Tally:
    """Whatever of `parts` is not done yet, for about so long."""
    work = work.resolve()
    (work / "home").mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import_all()
    make_base(work / "base")
    tally = Tally(work / "tally.jsonl", seconds)
    for part in parts:
        if part == "fuzz":
            fuzz(work, tally, list(KINDS), share=share, seed=seed)
        elif part == "kills":
            kill(work, tally, list(CHAINS), share=share, seed=seed)
        elif part == "troubles":
            trouble(work, tally, list(CHAINS), share=share, seed=seed)
        elif part == "leaks":
            leak(work, tally, share=share)
    return tally


def report(tally: Tally) -> str:
    """The counts as a page."""
    lines = [
        "# The campaign",
        "",
        "Written by `python -m tests.campaign WORK --report docs/campaign.md`: inputs that nobody writes on purpose,",
        "kills, full disks, vanishing folders, two processes at one `--out`, and a thousand pictures in one process.",
        f"An input is to be answered, or refused in one line, within {HANG_SECONDS:.0f} s of a processor and",
        f"{MEMORY_BYTES >> 30} GB of address space beyond what imports take; nothing outside `--out` may change, and",
        "no code of it may run.",
        "A command that was stopped, started again, is to end with the same weights and records as one that was not;",
        "models and pictures are the smallest that do. Every input and kill is a function of the seed.",
        "",
        "| what | done | of | failures left |",
        "|---|---|---|---|",
    ]
    counts = tally.counts()
    for kind in sorted(counts, key=_order):
        tries, troubles = counts[kind]
        lines.append(f"| {kind} | {tries} | {_planned(kind)} | {sum(troubles.values())} |")
    inputs = sum(tries for kind, (tries, _) in counts.items() if kind in KINDS)
    killed = sum(line.get("kills", 0) for line in tally.lines)
    lines += ["", f"{inputs} inputs and {killed} kills in all.", ""]
    left = sum((troubles for _, troubles in counts.values()), Counter())
    if left:
        lines += ["## Failures left", "", *(f"- {count} x {text}" for text, count in left.most_common()), ""]
    lines += ["## Found, and mended", "", *(f"- {text}" for text in MENDED)]
    lines += ["", "## Left to others", "", *(f"- {text}" for text in LEFT)]
    return "\n".join(lines) + "\n"


def _planned(kind: str) -> int:
    """How many there are of a kind."""
    if kind in KINDS:
        return KINDS[kind][0]
    what, name = kind.split(" ", 1) if kind.startswith("kill ") else kind.split(": ", 1)
    return CHAINS[name] if what == "kill" else 1 if what == "leak" else tries_of(name)


def _order(kind: str) -> tuple[int, str]:
    return (list(KINDS).index(kind) if kind in KINDS else len(KINDS) + kind.startswith("leak")), kind


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for what it works on, and its tally")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; repeat for more")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop about then")
    parser.add_argument("--share", type=float, default=1.0, help="of each kind, only so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="Markdown to write the counts to")
    given = parser.parse_args()
    tally = campaign(given.work, given.part or list(PARTS), seconds=given.seconds, share=given.share, seed=given.seed)
    page = report(tally)
    print(page)
    if given.report is not None:
        given.report.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
