"""What commands print: progress and people's text on stderr, tables and JSON on stdout."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer


def is_first_process() -> bool:
    """Whether this is the one of a torchrun's processes that speaks."""
    return os.environ.get("RANK", "0") == "0"


def fail(text: str) -> NoReturn:
    """One line on stderr, and exit code 1."""
    print(f"sam-edge: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(1)


def report(as_json: bool, result: dict[str, Any], text: str) -> None:
    """A command's result: the object on stdout, or the text for people on stderr."""
    if as_json:
        print_json(result)
    else:
        typer.echo(text, err=True)


def print_json(result: Any) -> None:
    """One object on stdout."""
    print(json.dumps(result, default=str))


def stdout() -> Any:
    """rich's console, for tables."""
    from rich.console import Console

    return Console()


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, shown where a person is watching."""
    if not sys.stderr.isatty() or not is_first_process():
        # nobody watches: drawing, and importing what draws, would be a tenth of a short command's time
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [SpinnerColumn(), TextColumn(title), BarColumn(), TextColumn("{task.description}")]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield on_progress
