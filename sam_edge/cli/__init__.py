"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import io
import sys
from typing import Annotated

import typer

from sam_edge import __version__
from sam_edge.cli import bench, compress, evaluate, export, quantize, run, segment, train, web
from sam_edge.cli.output import fail
from sam_edge.errors import SamEdgeError
from sam_edge.halves import missing

app = typer.Typer(
    name="sam-edge",
    help="Make a Segment Anything model small and fast, and show what it cost in accuracy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# in the order of the help
app.command("models")(run.models)
app.command("runtimes")(run.runtimes)
app.command("sample")(run.sample)
app.command("train")(train.train)
app.command("compress")(compress.compress)
app.command("embed")(compress.embed)
app.command("quantize")(quantize.quantize)
app.command("bench-quantize")(quantize.bench_quantize)
app.command("bench-integers")(quantize.bench_integers)
app.command("calibrate")(segment.calibrate)
app.command("export-onnx")(export.export_onnx)
app.command("export-trt")(export.export_trt)
app.command("export-web")(web.export_web)
app.command("serve")(web.serve)
app.command("convert")(export.convert)
app.command("bench")(bench.bench)
app.command("eval")(evaluate.evaluate)
app.command("card")(evaluate.card)
app.command("segment")(segment.segment)
app.command("run")(run.run)


@app.callback(invoke_without_command=True)
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
    try:
        app()
    except SamEdgeError as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        # a command of a half that is not installed; anything else that is not found is a bug, and raised again
        fail(str(missing(error)))
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        fail("interrupted.")
