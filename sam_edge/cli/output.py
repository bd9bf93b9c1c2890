"""What commands print: progress and people's text on stderr, tables and JSON on stdout."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import typer

INTERRUPTED = 130
"""Exit code of what Ctrl-C ended, as shells have it: 128 and the signal's number."""
STATES = (
    "{}/masks.jsonl",
    "{}/scores.jsonl",
    "{}/steps",
    "{}/index.json",
    "{}.stages",
    ".{}.embeddings",
    ".{}.state.safetensors",
)
"""Where unfinished work lies, beside or in what `--out` names."""


LOG_SECONDS = 15.0
"""Between two lines of progress in a log."""


def is_first_process() -> bool:
    """Whether this is the one of a torchrun's processes that speaks."""
    return os.environ.get("RANK", "0") == "0"


class Interrupted(Exception):
    """Ctrl-C, and what it left."""


def kept(options: Mapping[str, Any]) -> str:
    """What an interrupted command has left, by its options: work that it goes on from, or nothing."""
    for name in ("results", "out"):
        out = options.get(name)
        if not isinstance(out, Path):
            continue
        states = [out] if name == "results" else [out.parent / state.format(out.name) for state in STATES]
        for state in states:
            if state.exists():
                return f"what was done is kept in {state}, and the same command goes on from there"
    return "nothing was written" if options.get("out") is not None else "nothing was left behind"


def interruptible(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that says what an interruption left: it raises `Interrupted`."""

    @functools.wraps(command)
    def wrapped(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except KeyboardInterrupt:
            raise Interrupted(kept(options)) from None

    return wrapped


def fail(text: str, code: int = 1) -> NoReturn:
    """One line on stderr, and an exit code."""
    print(f"sam-edge: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of Python, NumPy, or PyTorch on the CPU and on GPUs."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said for words in ("not enough memory", "out of memory", "can't allocate memory", "bad_alloc")
    )


def report(as_json: bool, result: dict[str, Any], text: str) -> None:
    """A command's result: the object on stdout, or the text for people on stderr."""
    if as_json:
        print_json(result)
    else:
        typer.echo(text, err=True)


def plural(count: int, thing: str) -> str:
    """`1 mask`, `2 masks`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def print_json(result: Any) -> None:
    """One object on stdout."""
    print(json.dumps(result, default=str))


def stdout() -> Any:
    """rich's console, for tables."""
    from rich.console import Console

    return Console()


def _now_and_then(title: str) -> Callable[[int, int, str], None]:
    said = monotonic()

    def on_progress(done: int, total: int, text: str) -> None:
        nonlocal said
        if done and monotonic() - said >= LOG_SECONDS:
            said = monotonic()
            print(f"{title}: {text}, {done} of {total}", file=sys.stderr, flush=True)

    return on_progress


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr where a person is watching; in a log, a line now and then of what takes long."""
    if not is_first_process():
        yield lambda done, total, text: None
        return
    if not sys.stderr.isatty():
        # drawing, and importing what draws, would be a tenth of a short command's time
        yield _now_and_then(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [SpinnerColumn(), TextColumn(title), BarColumn(), TextColumn("{task.description}")]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        try:
            yield on_progress
        except BaseException:
            # of what failed an error is to be seen, not the bar before it
            bar.live.transient = True
            raise
