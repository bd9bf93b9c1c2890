"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sam_edge import __version__
from sam_edge.cli.examples import EXAMPLES
from sam_edge.cli.output import INTERRUPTED, Interrupted, fail, interruptible, is_memory
from sam_edge.errors import SamEdgeError
from sam_edge.halves import missing

USE, MAKE, MEASURE = "Use a model", "Make a model", "Measure a model"
"""Headings of the help."""
COMMANDS = {
    "demo": (USE, "run:demo"),
    "sample": (USE, "run:sample"),
    "segment": (USE, "segment:segment"),
    "serve": (USE, "web:serve"),
    "models": (USE, "run:models"),
    "runtimes": (USE, "run:runtimes"),
    "doctor": (USE, "run:doctor"),
    "compress": (MAKE, "compress:compress"),
    "embed": (MAKE, "compress:embed"),
    "train": (MAKE, "train:train"),
    "calibrate": (MAKE, "segment:calibrate"),
    "quantize": (MAKE, "quantize:quantize"),
    "export-onnx": (MAKE, "export:export_onnx"),
    "export-trt": (MAKE, "export:export_trt"),
    "export-web": (MAKE, "web:export_web"),
    "convert": (MAKE, "export:convert"),
    "run": (MAKE, "run:run"),
    "eval": (MEASURE, "evaluate:evaluate"),
    "bench": (MEASURE, "bench:bench"),
    "card": (MEASURE, "evaluate:card"),
    "study": (MEASURE, "study:app"),
}
"""Every command in the order of the help: its heading, and the module and function that it is."""


def application(names: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with the commands `names`, whose modules alone are imported."""
    app = typer.Typer(
        name="sam-edge",
        help="Make a Segment Anything model small and fast, and show what it cost in accuracy.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Where to begin: `sam-edge demo`. Every command has --help, with examples, and --json.",
    )
    app.callback(invoke_without_command=True)(_root)
    for name in names:
        panel, place = COMMANDS[name]
        module, _, function = place.partition(":")
        command = getattr(importlib.import_module(f"sam_edge.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel, epilog=_epilog(name))(interruptible(command))
    return app


def _epilog(name: str) -> str:
    return "\n\n".join(("Examples:", *(f"$ sam-edge {example}" for example in EXAMPLES[name])))


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors that a user can mend are one line and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files need not be UTF-8; they are written as they are
        sys.stdout.reconfigure(errors="surrogateescape")
    asked = [name for name in sys.argv[1:2] if name in COMMANDS]
    # completing, and helping, is about all commands
    whole = "_SAM_EDGE_COMPLETE" in os.environ or not asked
    try:
        application(tuple(COMMANDS) if whole else asked)()
    except SamEdgeError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        # a command of a half that is not installed; anything else that is not found is a bug, and raised again
        fail(str(missing(error)))
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}.")
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        fail("memory ran out: give smaller pictures, a smaller batch or grid of points, or a smaller model.")
    except Interrupted as interrupted:
        fail(f"interrupted: {interrupted}.", INTERRUPTED)
