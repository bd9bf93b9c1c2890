"""`sam-edge export-onnx`, `export-trt` and `convert`: graphs, engines, and weights under other keys."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam_edge.bench.hardware import hardware
from sam_edge.commands.common import OnProgress, counting, sample_others, sample_pictures
from sam_edge.commands.workshop.lineage import add_step
from sam_edge.commands.workshop.quantize import quantize
from sam_edge.data import open_some
from sam_edge.errors import ExportError
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.export.bundle import write_bundle
from sam_edge.export.readme import Accuracy
from sam_edge.export.to_layout import write_layout
from sam_edge.export.to_onnx import OnnxOptions, Precision, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, resolve_targets
from sam_edge.export.typed_graphs import match_precision
from sam_edge.files import check_target
from sam_edge.models.checkpoint import weights_sha256
from sam_edge.models.convert import WeightLayout, convert
from sam_edge.models.parts import complete
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.quantize.ptq import QuantizeOptions
from sam_edge.runtimes.engines import ENGINES, load_library
from sam_edge.runtimes.folder import ExportedFolder, names_exported_folder
from sam_edge.segment.known import KNOWN
from sam_edge.segment.runtime import Runtime


def to_onnx(
    spec: str,
    images: str,
    out: Path,
    options: OnnxOptions,
    *,
    layout: str = "sam-edge",
    data: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Export to ONNX, with parity on real pictures, and write an exported folder, or another tool's layout.

    With `data`, its README.md says how accurate the graphs are on `limit` pictures of the val split.
    """
    check_target(out)
    if layout != "sam-edge":
        return _to_layout(spec, images, out, options, layout, data, seed, device, on_progress)
    labelled = None if data is None else open_some(data, "val", limit=limit, seed=seed)

    def measure(runtime: Runtime) -> Accuracy:
        assert labelled is not None
        point, box = evaluate_prompts(runtime, labelled, [Asked("point", True), Asked("box")])
        machine = f"{hardware()['cpu']}, {runtime.name}"
        return Accuracy(Path(str(data)).name, box.images, box.masks, point.miou, box.miou, machine)

    model = load_model(spec, resolve_device(device))
    name = spec if spec in KNOWN else Path(spec).name
    pictures = sample_pictures(images, 2, seed)
    measured = measure if labelled is not None else None
    _, parity = export_onnx(model, out, pictures, options, name, measured, on_progress)
    sizes = {file.name: file.stat().st_size for file in sorted(out.glob("*.onnx"))}
    return {"out": str(out), "precision": options.precision, "parity": parity.as_dict(), "file_bytes": sizes}


def to_graphs(
    spec: str, images: str, out: Path, precision: Precision, *, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Export a checkpoint, quantized on the way where integers are asked of floats."""
    with tempfile.TemporaryDirectory() as scratch:
        if precision == "int8" and load_model(spec).config.quantization is None:
            integers = Path(scratch) / "int8"
            quantize(spec, images, integers, QuantizeOptions(seed=seed), device=device)
            spec = str(integers)
        return to_onnx(spec, images, out, OnnxOptions(precision), seed=seed, device=device)


def _to_layout(
    spec: str,
    images: str,
    out: Path,
    options: OnnxOptions,
    layout: str,
    data: str | None,
    seed: int,
    device: str,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Export to another tool's layout, by way of an exported folder, which `spec` may be itself."""
    if data is not None:
        raise ExportError("--data is measured on sam-edge's own layout: leave it out, or --layout.")
    pictures = sample_pictures(images, 2, seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(spec).expanduser()
        if not names_exported_folder(spec):
            folder = Path(scratch) / "onnx"
            to_onnx(spec, images, folder, options, seed=seed, device=device, on_progress=on_progress)
        elif options != OnnxOptions():
            raise ExportError(
                f"{spec} is exported already and is adapted as it is: leave out --precision, --dialect, --twin, "
                "--products and --decoder, or give the checkpoint."
            )
        source = spec if spec in KNOWN else Path(spec).name
        written = write_layout(folder, out, layout, pictures, out.name, source)
    parity = {"mask_iou": written["mask_iou"]}
    sizes = {file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*.onnx"))}
    return {"out": str(out), "precision": written["precision"], "layout": layout, "parity": parity, "file_bytes": sizes}


def to_engines(
    spec: str,
    images: str,
    out: Path | None,
    trt: TrtOptions,
    *,
    bundle: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Build engines (`out`) of an exported folder, or of a checkpoint that is exported on the way, or write what a
    device builds its own of (`bundle`).

    Ranges are read on two of `images`, agreement is judged on two others.
    """
    for folder in filter(None, (out, bundle)):
        check_target(folder)
    if out is not None:
        # what cannot be built is known before a long export, not after it
        targets = resolve_targets(load_library(trt.flavor), trt)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        graphs = Path(spec).expanduser()
        if not names_exported_folder(spec):
            graphs = Path(scratch) / "onnx"
            quantized = load_model(spec).config.quantization is not None
            match_precision(spec, quantized, trt.precision or ("int8" if quantized else "fp16"))
            onnx = OnnxOptions("int8" if quantized else "fp32", "tensorrt")
            to_onnx(spec, images, graphs, onnx, seed=seed, device=device, on_progress=on_progress)
        exported = ExportedFolder.read(graphs)
        pictures, others = sample_pictures(images, 2, seed), sample_others(images, 2, seed, 2)
        if out is not None:
            one_more = counting(len(targets) * len(exported.graphs), "engines", on_progress)
            engines = build_engines(exported, out, trt, pictures, others, on_build=lambda _: one_more())
            typed = json.loads((out / ENGINES).read_text())["typed"]
            result |= {"out": str(out), "engines": [asdict(engine) for engine in engines], "typed": typed}
        if bundle is not None:
            manifest = write_bundle(exported, bundle, trt, pictures, others)
            result["bundle"] = {"out": str(bundle), "typed": manifest["typed"], "graphs": manifest["graphs"]}
    return result


def convert_weights(spec: str, out: Path, layout: WeightLayout, base: str | None = None) -> dict[str, Any]:
    """Write a MODEL's weights under another program's keys; of `base` come the parts that a checkpoint file lacks."""
    if base is None:
        model = load_model(spec)
    else:
        rest = load_model(base)
        model = complete(Path(spec).expanduser(), rest)
        add_step(model, "convert", {"base": base}, 0, weights_sha256(rest), [], parent=base)
    convert(model, out, layout)
    files = [file for file in out.rglob("*") if file.is_file()] if out.is_dir() else [out]
    return {"out": str(out), "layout": layout, "bytes": sum(file.stat().st_size for file in files)}
