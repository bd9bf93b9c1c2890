"""`quantize`, and `bench-quantize` that compares its settings."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sam_edge.cli.options import (
    DEFAULT_IMAGES,
    CalibrationImages,
    Curvature,
    EvalSplit,
    Images,
    IntegerRuntime,
    Json,
    Metric,
    Model,
    OnDevice,
    Out,
    Rounding,
    RuntimeName,
    Seed,
    Strict,
    claim,
)
from sam_edge.cli.output import print_json, progress, report, stdout
from sam_edge.option_docs import doc

_QUANTIZE = partial(doc, "sam_edge.quantize.ptq", "QuantizeOptions")


def quantize(
    model: Model,
    images: Images,
    out: Out,
    weights: Annotated[int, typer.Option(help=_QUANTIZE("weights"))] = 8,
    activations: Annotated[int, typer.Option(help=_QUANTIZE("activations"))] = 8,
    metric: Annotated[Metric, typer.Option(help=_QUANTIZE("metric"))] = Metric.hessian,
    curvature: Annotated[Curvature, typer.Option(help=_QUANTIZE("curvature"))] = "fisher",
    twin: Annotated[bool, typer.Option(help=_QUANTIZE("twin"))] = True,
    rounding: Annotated[Rounding, typer.Option(help=_QUANTIZE("rounding"))] = "auto",
    per_layer: Annotated[bool, typer.Option("--per-layer", help=_QUANTIZE("per_layer"))] = False,
    calibration_images: CalibrationImages = 8,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of layer names to leave in float, as image_encoder.neck.* or *.products; repeat for more."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest drop allowed, as 0.01, of the model as export-onnx writes it; for it the most sensitive "
            "layers go back to 8 bits or float."
        ),
    ] = None,
    gate_data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Labelled pictures, of which those of the train split have the mIoU that --max-drop is about; without "
            "them it is agreement with the float model's masks.",
        ),
    ] = None,
    gate_images: Annotated[int, typer.Option(help="Pictures that --max-drop is measured on.")] = 16,
    runtime: Annotated[
        RuntimeName | None, typer.Option(help="Export the result and time it against its float parent on this runtime.")
    ] = None,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Turn a float checkpoint into an integer one, after training, with a few photos for calibration."""
    from sam_edge.bench.units import size
    from sam_edge.commands.workshop.quantize import quantize as quantize_
    from sam_edge.quantize.ptq import QuantizeOptions

    defaults = QuantizeOptions()
    options = QuantizeOptions(
        weights=weights,
        activations=activations,
        metric=metric.value,
        curvature=curvature,
        twin=twin,
        rounding=rounding,
        per_layer=per_layer,
        skip=(*defaults.skip, *(skip or ())),
        seed=seed,
    )
    with progress("quantize") as on_progress:
        result = quantize_(
            model,
            images,
            out,
            options,
            calibration_images=calibration_images,
            max_drop=max_drop,
            gate_data=gate_data,
            gate_images=gate_images,
            runtime=None if runtime is None else runtime.value,
            device=device,
            strict=strict,
            on_progress=on_progress,
        )
    said = (
        f"{out}: {result['layers']} layers, {weights}-bit weights, {activations}-bit activations, "
        f"{size(result['file_bytes'])}"
    )
    if gate := result["gate"]:
        given = f", {len(gate['raised'])} layers given back" if gate["raised"] else ""
        said += f"; {gate['measure']}: {gate['float_score']:.4f} -> {gate['score']:.4f}{given}"
    if speed := result["speed"]:
        ratio = speed["float_ms"] / speed["quantized_ms"]
        verdict = f"{ratio:.2f} x as fast as" if speed["faster"] else f"NOT faster ({ratio:.2f} x) than"
        said += f"; encoder {verdict} its float parent in {speed['runtime']}"
        if speed["best_parent"] != speed["runtime"]:
            gain = f"{speed['gain']:.2f} x"
            verdict = f"{gain} as fast as" if speed["gain"] > 1 else f"NOT faster ({gain}) than"
            said += f", and {verdict} it is at its best here, in {speed['best_parent']}"
    report(as_json, result, said)


def bench_quantize(
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
    from dataclasses import asdict

    from sam_edge.bench.hardware import hardware, slug
    from sam_edge.bench.provenance import provenance, used_sha256
    from sam_edge.bench.quantization import rich_table, settings, write_csv
    from sam_edge.bench.repeats import LOG
    from sam_edge.commands.workshop.integers import quantization_table
    from sam_edge.files import atomic_file, check_target

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
    result = {
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
        "provenance": provenance({model: used_sha256(model)}, hardware=machine),
        "float": asdict(parent),
        "rows": [asdict(row) for row in rows],
    }
    if out is not None:
        with atomic_file(out / "bench.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_csv(parent, rows, out / f"{slug(machine)}.csv")
    if as_json:
        print_json(result)
    else:
        stdout().print(rich_table(parent, rows))


def bench_integers(
    model: Model,
    integers: Annotated[str, typer.Argument(metavar="QUANTIZED", help="The quantized checkpoint made of MODEL.")],
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
            integers,
            images,
            runtimes=[name.value for name in runtime or IntegerRuntime],
            turns=turns,
            seed=seed,
            on_progress=on_progress,
        )
    result = {"settings": {"model": model, "quantized": integers, "turns": turns, "seed": seed}, **as_dict(found)}
    result["provenance"] = provenance({spec: used_sha256(spec) for spec in (model, integers)})
    if out is not None:
        with atomic_file(out) as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
        return
    stdout().print(race_table(found))
    for key, value in ratios(found).items():
        stdout().print(f"{key.replace('_', ' ')}: {value:.2f} x")
