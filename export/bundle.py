"""What a device needs to build its own engines: graphs, inputs with answers, a program that needs no sam-edge."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sam_edge.export import on_device
from sam_edge.export.parity import GRID, parity_prompts
from sam_edge.export.to_tensorrt import TrtOptions, checked, described, profile_shapes
from sam_edge.export.typed_graphs import SMALLEST_IOU, Picture, TypedGraphs, write_typed
from sam_edge.files import atomic_folder, sha256_of
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.graphs import decoder_inputs
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.prompts import Prompts

SCHEMA = 1
MANIFEST = "bundle.json"
PARITY = "parity.npz"
SCRIPT = "on_device.py"
SAME_GRAPH = 0.97
"""Mean mask IoU that float32 engines, whose products may be of TF32, have to reach on the device."""


def write_bundle(
    exported: ExportedFolder,
    out: str | Path,
    options: TrtOptions,
    images: Sequence[Picture],
    others: Sequence[Picture] = (),
) -> dict[str, Any]:
    """Write `out`: typed graphs, `bundle.json`, `parity.npz`, `on_device.py` and a README.md; returns what the manifest
    says. Gelu is written by Erf, for older parsers. See `write_typed` for `images` and `others`.

    Raises:
        ExportError: options that cannot be, or graphs that a precision ruins.
    """
    precision = checked(exported, options)
    with atomic_folder(out) as work:
        typed = write_typed(exported, work, precision, images, others, erf=True)
        parity = _parity(exported, options, (others or images)[0])
        np.savez_compressed(work / PARITY, **parity)  # type: ignore[arg-type]
        shutil.copyfile(on_device.__file__, work / SCRIPT)
        manifest = _manifest(exported, options, typed, work)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        (work / "README.md").write_text(_readme(Path(out).name, manifest), "utf-8")
    return manifest


def _parity(exported: ExportedFolder, options: TrtOptions, image: Picture) -> dict[str, np.ndarray]:
    """One picture's pixels, points and boxes, and what the float32 graphs say of them."""
    runtime = OnnxRuntime(exported.path, threads=cpu_threads(), kernels=False)
    pixels, frame = to_pixels(image, exported.config)
    embeddings, prompts = runtime.encode(pixels), parity_prompts(frame)
    stored: dict[str, np.ndarray] = {"pixels": pixels}
    for kind, sets in (("points", slice(GRID)), ("boxes", slice(GRID, None))):
        some = prompts.part(sets).part(slice(options.max_sets))
        some = Prompts(some.coords[:, :, : options.max_points], some.labels[:, :, : options.max_points])
        logits, iou = runtime.decode(embeddings, some)
        answers = {**decoder_inputs(exported.config, some), "logits": logits, "iou": iou}
        stored |= {f"{kind}_{name}": value for name, value in answers.items()}
    return stored


def _manifest(exported: ExportedFolder, options: TrtOptions, typed: TypedGraphs, folder: Path) -> dict[str, Any]:
    config = exported.config
    graphs = {
        graph: {
            "file": file.name,
            "shapes": profile_shapes(exported.graphs[graph]["inputs"], options, config.decoder.heads),
        }
        for graph, file in typed.files.items()
    }
    files = sorted(path.name for path in folder.iterdir())
    return {
        "schema": SCHEMA,
        "precision": typed.precision,
        "smallest_iou": SMALLEST_IOU.get(typed.precision, SAME_GRAPH),
        "image_size": config.image_size,
        "mask_size": config.mask_size,
        "pixel_mean": list(config.pixel_mean),
        "pixel_std": list(config.pixel_std),
        "graphs": graphs,
        "typed": described(typed),
        "sha256": {name: sha256_of(folder / name) for name in files},
        "config": asdict(config),
    }


def _readme(name: str, manifest: dict[str, Any]) -> str:
    parity = manifest["typed"]["parity"]
    agreement = (
        f" Walked on a CPU, masks agree with float32 to a mean IoU of {parity['mask_iou']:.4f}." if parity else ""
    )
    return f"""# {name}

A Segment Anything model for pictures of {manifest["image_size"]} px in {manifest["precision"]}, to become TensorRT
engines on the device that runs them. It has never run on a GPU: engines are built there, and checked there.{agreement}

Copy this folder to the device, which needs TensorRT's Python package (10 or newer), numpy and pycuda. There:

    python3 {SCRIPT} build
    python3 {SCRIPT} check       # refuses engines whose masks agree to less than {manifest["smallest_iou"]}
    python3 {SCRIPT} time
    python3 {SCRIPT} segment photo.jpg --box 165,15,420,290 --out mask.pgm

`bundle.json` says what the graphs take and which nodes keep float32, with the reason; `{PARITY}` holds a picture,
prompts and their answers in float32; `build.log` and `engines.json` are written there.
"""
