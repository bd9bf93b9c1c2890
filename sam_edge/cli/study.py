"""`study`: ablations, races and tables, most of which a page of docs/explanation is about.

Two are commands of their own; the others are modules that parse their own arguments, and are handed them.
"""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sam_edge.cli.options import (
    DEFAULT_IMAGES,
    CalibrationImages,
    EvalSplit,
    Images,
    IntegerRuntime,
    Json,
    Metric,
    Model,
    OnDevice,
    Rounding,
    Seed,
    claim,
)
from sam_edge.cli.output import interruptible, print_json, progress, stdout
from sam_edge.option_docs import doc

_QUANTIZE = partial(doc, "sam_edge.quantize.ptq", "QuantizeOptions")
MODULES = {
    "lineage": ("sam_edge.studies.lineage", "Race SAM-B, SlimSAM-77, TinyViT and nano-vit: each form against float."),
    "slimming": ("sam_edge.studies.slimming", "Repeat SlimSAM's tables: stages, importance, rankings."),
    "distillation": ("sam_edge.studies.distillation", "Repeat TinySAM's tables of full-stage distillation."),
    "versus": ("sam_edge.studies.versus", "One model against others on the same pictures, with intervals."),
    "pruning": ("sam_edge.studies.pruning_choices", "What compress's own choices cost, before any training."),
    "engines": ("sam_edge.studies.engines", "Build engines of every kind of model; their sizes and build times."),
    "device": ("sam_edge.bench.device", "What a device needs: an installation, processor time, memory."),
    "kernels": ("sam_edge.bench.kernels", "Race the CPU kernels against what runtimes have."),
    "cuda-kernels": ("sam_edge.bench.cuda_kernels", "Race the CUDA kernels against torch, on a GPU."),
    "layers": ("sam_edge.studies.layers", "Measure where integers pay in ONNX Runtime on this processor."),
}
"""Studies that parse their own arguments: the module, and what it is about."""

app = typer.Typer(
    help="What researchers ask: ablations of the papers, races of forms, tables over seeds.", no_args_is_help=True
)


@app.command("quantization")
@interruptible
def quantization(
    model: Model,
    images: Images,
    data: Annotated[
        list[str], typer.Option(metavar="DIR", help="Labelled pictures to evaluate on; repeat for the mean of several.")
    ],
    bits: Annotated[list[int] | None, typer.Option(help="Bits of weights and activations; repeat for more.")] = None,
    metric: Annotated[list[Metric] | None, typer.Option(help="Metric to compare; repeat for more.")] = None,
    twin: Annotated[bool | None, typer.Option(help="Twin scales on or off only; both by default.")] = None,
    rounding: Annotated[Rounding, typer.Option(help=_QUANTIZE("rounding"))] = "auto",
    seeds: Annotated[int, typer.Option(help="Calibration seeds from --seed on, each with pictures of its own.")] = 3,
    calibration_images: CalibrationImages = 8,
    split: EvalSplit = "val",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on so many pictures of each, the same for all seeds.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for bench.json and a CSV of one line per run; begun tables go on from there.",
            callback=claim,
        ),
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Compare bits, metrics and twin scales: mIoU lost, agreement and task loss against the float model, over seeds."""
    from sam_edge.bench.hardware import hardware, slug
    from sam_edge.bench.provenance import provenance, used_sha256
    from sam_edge.bench.quantization import rich_table, settings, write_csv
    from sam_edge.bench.repeats import LOG
    from sam_edge.commands.workshop.integers import quantization_table
    from sam_edge.data import open_some
    from sam_edge.evaluate.walk import data_sha256
    from sam_edge.files import atomic_file, check_target
    from sam_edge.paired import compared
    from sam_edge.studies.claims import pairs

    if out is not None and not (out / LOG).is_file():
        check_target(out)
    metrics = [name.value for name in metric or tuple(Metric)]
    chosen = list(settings(bits or (8, 6), metrics, (True, False) if twin is None else (twin,), rounding))
    with progress("bench") as on_progress:
        parent, rows = quantization_table(
            model,
            images,
            data,
            chosen,
            range(seed, seed + seeds),
            calibration_images=calibration_images,
            split=split,
            limit=limit,
            device=device,
            log=None if out is None else out / LOG,
            on_progress=on_progress,
        )
    machine = hardware()
    seen = {spec: data_sha256(open_some(spec, split, limit=limit, seed=0)) for spec in data}
    result: dict[str, Any] = {
        "settings": {
            "model": model,
            "images": images,
            "data": data,
            "calibration_images": calibration_images,
            "split": split,
            "limit": limit,
            "seeds": seeds,
            "seed": seed,
            "device": device,
        },
        "provenance": provenance({model: used_sha256(model)}, seen, machine),
        "float": parent.as_dict(),
        "rows": [row.as_dict(parent) for row in rows],
        "compared": compared(
            {"float": [parent.totals]} | {row.setting.label: [run.totals for run in row.runs] for row in rows},
            pairs("quantization"),
        ),
    }
    if out is not None:
        with atomic_file(out / "bench.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_csv(parent, rows, result["provenance"], out / f"{slug(machine)}.csv")
    if as_json:
        print_json(result)
    else:
        stdout().print(rich_table(parent, rows))


@app.command("integers")
@interruptible
def integers(
    model: Model,
    quantized: Annotated[str, typer.Argument(metavar="QUANTIZED", help="The quantized checkpoint made of MODEL.")],
    images: Images = DEFAULT_IMAGES,
    runtime: Annotated[
        list[IntegerRuntime] | None, typer.Option(help="Runtime to race in, repeat for more; both by default.")
    ] = None,
    turns: Annotated[int, typer.Option(help="Turns that every contender takes.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file of times and ratios.", callback=claim)
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
) -> None:
    """Race the integer encoder against float, bfloat16, and ONNX Runtime's own quantization, in turn."""
    from sam_edge.bench.integers import as_dict, race_table, ratios
    from sam_edge.bench.provenance import provenance, used_sha256
    from sam_edge.commands.workshop.integers import encoder_race
    from sam_edge.files import atomic_file

    with progress("race") as on_progress:
        found = encoder_race(
            model,
            quantized,
            images,
            runtimes=[name.value for name in runtime or IntegerRuntime],
            turns=turns,
            seed=seed,
            on_progress=on_progress,
        )
    result = {"settings": {"model": model, "quantized": quantized, "turns": turns, "seed": seed}, **as_dict(found)}
    result["provenance"] = provenance({spec: used_sha256(spec) for spec in (model, quantized)})
    if out is not None:
        with atomic_file(out) as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
        return
    stdout().print(race_table(found))
    for key, value in ratios(found).items():
        stdout().print(f"{key.replace('_', ' ')}: {value:.2f} x")


def _handed_on(module: str) -> Callable[[typer.Context], None]:
    @interruptible
    def study(context: typer.Context) -> None:
        importlib.import_module(module).main(context.args)

    return study


for _name, (_module, _about) in MODULES.items():
    # their own parsers answer --help
    app.command(
        _name,
        help=_about,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_handed_on(_module))
