"""`quantize`."""

from functools import partial
from typing import Annotated

import typer

from sam_edge.cli.option_docs import doc
from sam_edge.cli.options import (
    CalibrationImages,
    Curvature,
    Images,
    Json,
    Metric,
    Model,
    OnDevice,
    Out,
    Rounding,
    RuntimeName,
    Seed,
    Strict,
)
from sam_edge.cli.output import progress, report

_QUANTIZE = partial(doc, "sam_edge.quantize.ptq", "QuantizeOptions")


def quantize(
    model: Model,
    images: Images,
    out: Out,
    weights: Annotated[int, typer.Option(help=_QUANTIZE("weights"))] = 8,
    activations: Annotated[int, typer.Option(help=_QUANTIZE("activations"))] = 8,
    metric: Annotated[Metric, typer.Option(help=_QUANTIZE("metric"))] = "hessian",
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
        metric=metric,
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
