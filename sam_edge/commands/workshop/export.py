"""`sam-edge export-onnx` and `export-trt`: exported folders and engines."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam_edge.commands.common import sample_pictures
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, resolve_targets
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.runtimes.engines import load_library
from sam_edge.runtimes.folder import ExportedFolder, is_exported_folder


def to_onnx(
    spec: str, images: str, out: Path, options: OnnxOptions, *, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Export to ONNX, with parity on real pictures, and write an exported folder."""
    model = load_model(spec, resolve_device(device))
    _, parity = export_onnx(model, out, sample_pictures(images, 2, seed), options)
    sizes = {file.name: file.stat().st_size for file in sorted(out.glob("*.onnx"))}
    return {"out": str(out), "precision": options.precision, "parity": parity.as_dict(), "file_bytes": sizes}


def to_engines(
    spec: str, images: str, out: Path, onnx: OnnxOptions, trt: TrtOptions, *, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Build engines of an exported folder, or of a checkpoint that is exported on the way."""
    # a target that cannot be built is known before a long export, not after it
    resolve_targets(load_library(trt.flavor), trt)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(spec)
        if not is_exported_folder(folder):
            folder = Path(scratch) / "onnx"
            to_onnx(spec, images, folder, onnx, seed=seed, device=device)
        engines = build_engines(ExportedFolder.read(folder), out, trt)
    return {"out": str(out), "engines": [asdict(engine) for engine in engines]}
