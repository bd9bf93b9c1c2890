"""Engines of every kind of model that sam-edge knows, for three GPUs: how long builds take, and how large they are.

    sam-edge study engines --images photos/ --out engines.csv

None of them runs here. Models whose weights are other people's have random ones: sizes and times are of shapes.
"""

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sam_edge.commands.common import sample_others, sample_pictures
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, float32_bytes
from sam_edge.models.registry import load_model
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.engines import ENGINES
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.studies.measuring import parser_of

MODELS = ("nano", "random:vit_t", "random:slimsam-77", "random:vit_b")
PRECISIONS = ("fp16", "int8")
TARGETS = ("sm86", "sm89", "sm120")
COLUMNS = ["model", "precision", "target", "graph", "engine_bytes", "float32_onnx_bytes", "build_seconds"]
COLUMNS += ["float32_nodes", "mask_iou", "library", "state", "note"]


def rows(model: str, precision: str, images: str, folder: Path) -> list[dict[str, object]]:
    """Build one model's engines in one precision, for all targets.

    Raises:
        ExportError: what is typed disagrees with float32, or a graph is refused.
    """
    pictures = sample_pictures(images, 1, 0)
    sam = load_model(model)
    if precision == "int8":
        quantize_model(sam, pictures, QuantizeOptions(metric="minmax"))
    form = "int8" if precision == "int8" else "fp32"
    export_onnx(sam, folder / "onnx", pictures, OnnxOptions(form, "tensorrt"), model)  # type: ignore[arg-type, unused-ignore]
    exported = ExportedFolder.read(folder / "onnx")
    options = TrtOptions(targets=TARGETS, precision=precision)  # type: ignore[arg-type, unused-ignore]
    engines = build_engines(exported, folder / "engines", options, pictures, sample_others(images, 1, 0, 1))
    typed = json.loads((folder / "engines" / ENGINES).read_text())["typed"]
    return [
        {
            "model": model,
            "precision": precision,
            "target": engine.target,
            "graph": engine.graph,
            "engine_bytes": engine.bytes,
            "float32_onnx_bytes": float32_bytes(exported.graph_file(engine.graph)),
            "build_seconds": engine.build_seconds,
            "float32_nodes": len(typed["float32"][engine.graph]),
            "mask_iou": round(typed["parity"]["mask_iou"], 4),
            "library": f"tensorrt-rtx {engine.version}",
            "state": engine.state,
            "note": engine.note,
        }
        for engine in engines
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table, and go on where it was cut short."""
    parser = parser_of("engines", __doc__)
    parser.add_argument("--images", required=True, help="folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write, or to go on with")
    parser.add_argument("--model", action="append", choices=MODELS, help="only these")
    args = parser.parse_args(arguments)
    done: list[dict[str, object]] = []
    if args.out.is_file():
        with args.out.open(newline="") as file:
            done = [dict(row) for row in csv.DictReader(file)]
    for model in args.model or MODELS:
        for precision in PRECISIONS:
            if any((row["model"], row["precision"]) == (model, precision) for row in done):
                continue
            with tempfile.TemporaryDirectory() as scratch:
                done += rows(model, precision, args.images, Path(scratch))
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(done)


if __name__ == "__main__":
    main()
