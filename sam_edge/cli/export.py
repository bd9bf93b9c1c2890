"""`export-onnx`, `export-trt`, and `convert`, which writes weights."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sam_edge.cli.option_docs import doc
from sam_edge.cli.options import (
    DEFAULT_IMAGES,
    DecoderArithmetic,
    Dialect,
    EnginePrecision,
    Flavor,
    Images,
    Json,
    Layers,
    Layout,
    Model,
    OnDevice,
    Out,
    Precision,
    Products,
    Seed,
    WeightLayout,
    claim,
)
from sam_edge.cli.output import progress, report

_ONNX = partial(doc, "sam_edge.export.to_onnx", "OnnxOptions")
_TRT = partial(doc, "sam_edge.export.to_tensorrt", "TrtOptions")


def export_onnx(
    model: Model,
    out: Out,
    layout: Annotated[
        Layout,
        typer.Option(
            help="Whose files: our own, or those of another tool, with a README.md that says how it takes them; then "
            "MODEL may be exported already. `osam` is for labelme too, `sam` for callers of segment-anything's ONNX "
            "decoder, `cpp` for segment-anything-cpp-wrapper, `transformers` for transformers.js and optimum."
        ),
    ] = "sam-edge",
    precision: Annotated[Precision, typer.Option(help=_ONNX("precision"))] = "fp32",
    dialect: Annotated[Dialect, typer.Option(help=_ONNX("dialect"))] = "cpu",
    twin: Annotated[bool, typer.Option("--twin", help=_ONNX("twin"))] = False,
    products: Annotated[Products, typer.Option(help=_ONNX("products"))] = "auto",
    layers: Annotated[Layers, typer.Option(help=_ONNX("layers"))] = "all",
    decoder: Annotated[DecoderArithmetic, typer.Option(help=_ONNX("decoder"))] = "float",
    images: Images = DEFAULT_IMAGES,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Labelled pictures: README.md says what the graphs score on their val split."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score on so many of them, drawn by the seed.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "cpu",
) -> None:
    """Write encoder and decoder as ONNX, and check them against torch on pictures (--images)."""
    from sam_edge.bench.units import size
    from sam_edge.commands.workshop import export
    from sam_edge.export.to_onnx import OnnxOptions

    options = OnnxOptions(precision, dialect, twin, products, layers, decoder)
    with progress("export") as on_progress:
        result = export.to_onnx(
            model,
            images,
            out,
            options,
            layout=layout,
            data=data,
            limit=limit,
            seed=seed,
            device=device,
            on_progress=on_progress,
        )
    files = ", ".join(f"{name} {size(value)}" for name, value in result["file_bytes"].items())
    other = "torch" if layout == "sam-edge" else "sam-edge's own"
    report(as_json, result, f"{out}: {files}; masks agree with {other} to IoU {result['parity']['mask_iou']:.4f}")


def export_trt(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of engines to write; whole or not at all.", callback=claim),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write, beside engines or in their stead, what a device builds its own of, as a Jetson has to.",
            callback=claim,
        ),
    ] = None,
    flavor: Annotated[Flavor, typer.Option(help=_TRT("flavor"))] = "rtx",
    target: Annotated[list[str] | None, typer.Option(help=_TRT("targets"))] = None,
    precision: Annotated[EnginePrecision | None, typer.Option(help=_TRT("precision"))] = None,
    max_batch: Annotated[int, typer.Option(help=_TRT("max_batch"))] = 1,
    max_sets: Annotated[int, typer.Option(help=_TRT("max_sets"))] = 64,
    max_points: Annotated[int, typer.Option(help=_TRT("max_points"))] = 16,
    images: Images = DEFAULT_IMAGES,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "cpu",
) -> None:
    """Build TensorRT engines; `rtx` builds them for other machines' GPUs, on a machine without one."""
    from sam_edge.bench.units import size
    from sam_edge.commands.workshop import export
    from sam_edge.export.to_tensorrt import TrtOptions

    if out is None and bundle is None:
        raise typer.BadParameter("give a folder for engines, or --bundle with one for a device.", param_hint="--out")
    trt = TrtOptions(flavor, tuple(target or ()), max_batch, max_sets, max_points, precision)
    with progress("build") as on_progress:
        result = export.to_engines(
            model, images, out, trt, bundle=bundle, seed=seed, device=device, on_progress=on_progress
        )
    lines = []
    if out is not None:
        built = ", ".join(f"{engine['file']} {size(engine['bytes'])}" for engine in result["engines"])
        lines.append(f"{out}: {built}{_agreement(result['typed'])}; built, not run")
    if bundle is not None:
        lines.append(f"{bundle}: to be built on a device{_agreement(result['bundle']['typed'])}")
    report(as_json, result, "\n".join(lines))


def _agreement(typed: dict[str, Any]) -> str:
    parity = typed["parity"]
    return f"; masks in {typed['precision']} agree with float32 to IoU {parity['mask_iou']:.4f}" if parity else ""


def convert(
    model: Model,
    layout: Annotated[
        WeightLayout,
        typer.Option(help="Whose keys; `safetensors` is one file that is the whole model, of any kind, for sam-edge."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="What to write: a .pth, a .safetensors for that layout, a folder for transformers.",
            callback=claim,
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A whole SAM, for a MODEL that is a file of an image encoder or a decoder alone: the parts which that "
            "lacks are taken from it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model's weights under another program's keys; read back they are the same, or nothing is written."""
    from sam_edge.bench.units import size
    from sam_edge.commands.workshop import export

    result = export.convert_weights(model, out, layout, base)
    report(as_json, result, f"{out}: {size(result['bytes'])}, keys of {layout}")
