"""Inputs that were never meant: each gets an answer or one line, in time and memory, and nothing else is touched."""

import io
import json
import os
import random
import shutil
import sys
import traceback
import warnings
from itertools import islice, pairwise
from pathlib import Path
from time import monotonic, process_time

from tests.campaign.forked import HANG_SECONDS, TRACEBACK, Ending, Running, limit_memory
from tests.campaign.inputs import CANARY, KINDS
from tests.campaign.tally import Tally

BATCH = 40
"""Inputs to a forked process."""
WAITED_SECONDS = 5 * HANG_SECONDS
"""By the clock, after which an input hangs even if it takes no processor's time, however busy the machine is."""


def fuzz(work: Path, tally: Tally, kinds: list[str], *, share: float = 1.0, seed: int = 0) -> None:
    """Every kind's inputs that are not done, or a `share` of each kind."""
    for kind in kinds:
        wanted = tally.wanted(kind, max(1, round(KINDS[kind][0] * share)))
        while batch := list(islice(wanted, BATCH)):
            while batch:
                done = _batch(work, kind, batch, seed)
                for number, trouble, line in done:
                    tally.add(kind, number, trouble, command=line)
                batch = batch[len(done) :]


def _batch(work: Path, kind: str, batch: list[int], seed: int) -> list[tuple[int, str | None, list[str]]]:
    """What became of the first so many; a process that ended or hung takes its last input with it."""
    lines = work / "lines"
    lines.write_text("")
    scratch = work / "streams"
    scratch.mkdir(exist_ok=True)
    running = Running(lambda: _all_of(work, kind, batch, seed, lines), scratch)
    seen, since = 0, monotonic()
    while not running.wait(1.0):
        size = lines.stat().st_size
        if size != seen:
            seen, since = size, monotonic()
        if monotonic() - since > WAITED_SECONDS:
            running.kill()
    ending = running.ending()
    done = [tuple(json.loads(line)) for line in lines.read_text().splitlines()]
    if len(done) < len(batch):
        hung = monotonic() - since > WAITED_SECONDS
        trouble = "hang" if hung else ending.trouble or f"process ended: {ending.err[-200:]}"
        done.append((batch[len(done)], trouble, []))
    return done


def _all_of(work: Path, kind: str, batch: list[int], seed: int, lines: Path) -> None:
    canary, base = work / "canary", work / "base"
    os.environ |= {CANARY: str(canary), "SAM_EDGE_CACHE": str(work / "cache"), "HOME": str(work / "home")}
    warnings.simplefilter("ignore")
    limit_memory()
    for number in batch:
        folder = work / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        arguments = KINDS[kind][1](random.Random(f"{seed}/{kind}/{number}"), base, folder)
        before = _files(work)
        ending = _call(arguments, folder)
        trouble = ending.trouble
        after = _files(work)
        written = sorted(after.items() - before.items() | {(name, 0) for name in before.keys() - after.keys()})
        allowed = _allowed(arguments)
        outside = [name for name, _ in written if not name.startswith(allowed)]
        if canary.exists():
            trouble = "code of an input ran"
            canary.unlink()
        elif outside and trouble is None:
            trouble = f"wrote outside --out: {outside[0]}"
        elif ending.seconds > HANG_SECONDS and trouble is None:
            trouble = "slow"
        with lines.open("a") as file:
            file.write(json.dumps([number, trouble, arguments]) + "\n")


def _allowed(arguments: list[str]) -> tuple[str, ...]:
    """How names begin that this command may write: of what follows --out or --results, or is the command's default."""
    named = [value for flag, value in pairwise(arguments) if flag in ("--out", "--results")]
    named = ["out", *(value for value in named if value.strip("./") and "/" not in value)]
    # work that is not done lies beside what it will be
    return "input/photo.jpg", *(f"input/{dot}{name}" for name in named for dot in ("", "."))


def _files(work: Path) -> dict[str, float]:
    """Everything that an input could overwrite, and when that was last done."""
    return {
        str(path.relative_to(work)): path.lstat().st_mtime_ns
        for top in ("input", "base", "home")
        for path in (work / top).rglob("*")
        # where OpenVINO keeps whether it may report to its makers
        if "intel" not in path.parts
    }


def _call(arguments: list[str], folder: Path) -> Ending:
    """A command in this process."""
    from sam_edge.cli import main
    from sam_edge.errors import SamEdgeError
    from sam_edge.runtimes.engines import read_engines

    os.chdir(folder)
    sys.argv = ["sam-edge", *arguments]
    streams = [io.TextIOWrapper(io.BytesIO(), errors="surrogateescape", write_through=True) for _ in range(2)]
    kept, (sys.stdout, sys.stderr) = (sys.stdout, sys.stderr), streams
    started, code = process_time(), 0
    try:
        if arguments == ["read-engines"]:
            # a machine without a GPU says so before it reads them
            try:
                read_engines("model")
            except SamEdgeError as error:
                print(f"sam-edge: {error}", file=sys.stderr)
                code = 1
        else:
            main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:
        code = TRACEBACK
        traceback.print_exc()
    finally:
        sys.stdout, sys.stderr = kept
    out, err = (stream.buffer.getvalue().decode(errors="replace") for stream in streams)  # type: ignore[attr-defined]
    return Ending(code, out, err, process_time() - started)
