"""`study`: ablations, races and tables, most of which a page of docs/explanation is about.

Each is a module that parses its own arguments, and is handed them.
"""

import argparse
import importlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import typer

from sam_edge.cli.output import Interrupted, kept
from sam_edge.files import claimed

MODULES = {
    "quantization": ("sam_edge.studies.quantization", "Compare bits, metrics and twin scales, over seeds."),
    "integers": ("sam_edge.studies.integers", "Race the integer encoder against float, bfloat16 and others' integers."),
    "lineage": (
        "sam_edge.studies.lineage",
        "Race SAM-B, SlimSAM-77, TinyViT and nano-vit in every form against float.",
    ),
    "slimming": ("sam_edge.studies.slimming", "Repeat SlimSAM's tables: stages, importance, rankings."),
    "distillation": ("sam_edge.studies.distillation", "Repeat TinySAM's tables of full-stage distillation."),
    "versus": ("sam_edge.studies.versus", "One model against others on the same pictures, with intervals."),
    "pruning": ("sam_edge.studies.pruning_choices", "What compress's own choices cost, before any training."),
    "engines": ("sam_edge.studies.engines", "Build engines of every kind of model; their sizes and build times."),
    "costs": ("sam_edge.studies.costs", "Parameters, bytes and multiply-accumulates of a model, layer by layer."),
    "roofline": ("sam_edge.bench.roofline", "Each node's time over what this machine allows for it, and a chart."),
    "trials": ("sam_edge.bench.trials", "Whether bench's comparison can be believed on this machine."),
    "device": ("sam_edge.bench.device", "What a device needs: an installation, processor time, memory."),
    "kernels": ("sam_edge.bench.kernels", "Race the CPU kernels against what runtimes have."),
    "cuda-kernels": ("sam_edge.bench.cuda_kernels", "Race the CUDA kernels against torch, on a GPU."),
    "layers": ("sam_edge.studies.layers", "Measure where integers pay in ONNX Runtime on this processor."),
}
"""Of each study its module, and what it is about."""

app = typer.Typer(
    help="What researchers ask: ablations of the papers, races of forms, tables over seeds.", no_args_is_help=True
)


def _handed_on(module: str) -> Callable[[typer.Context], None]:
    def study(context: typer.Context) -> None:
        out = _out(context.args)
        try:
            with nullcontext() if out is None else claimed(out):
                importlib.import_module(module).main(context.args)
        except KeyboardInterrupt:
            raise Interrupted(kept({"out": out})) from None

    return study


def _out(arguments: list[str]) -> Path | None:
    """Where a study will write, of its arguments; whether they are right it says itself."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, nargs="?")
    return parser.parse_known_args(arguments)[0].out


for _name, (_module, _about) in MODULES.items():
    # their own parsers answer --help
    app.command(
        _name,
        help=_about,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_handed_on(_module))
