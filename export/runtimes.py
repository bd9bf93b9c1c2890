"""Opening a MODEL on a runtime: exported folders as they are, checkpoints after an export of their own."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from sam_edge.data import SyntheticScenes
from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export.onnx_runtime import ExportedFolder, OnnxRuntime, is_exported_folder
from sam_edge.export.openvino_runtime import OpenVinoRuntime
from sam_edge.export.tensorrt_runtime import Flavor, TensorRtRuntime, load_library, machine_target, read_engines
from sam_edge.export.to_onnx import OnnxOptions, Precision, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, rtx_targets
from sam_edge.models.quantized import Dialect
from sam_edge.models.registry import KNOWN, load_model
from sam_edge.segment.runtime import Runtime, TorchRuntime

RUNTIMES = ("auto", "torch", "onnxruntime", "openvino", "openvino-bf16", "tensorrt")
"""What `--runtime` takes. `openvino-bf16` lets OpenVINO compute float layers in bfloat16."""
DEVICES = ("auto", "cpu", "cuda")
"""What `--device` takes."""
PARITY_IMAGES = 2
"""Synthetic scenes on which a checkpoint's own export is compared with torch."""


def open_runtime(spec: str | Path, runtime: str = "auto", device: str = "cpu") -> Runtime:
    """Open a MODEL on a runtime.

    `auto` is torch for what holds weights and ONNX Runtime for an exported folder. Any other runtime exports a
    checkpoint first (fp32, or int8 if it is quantized; for `tensorrt` also an engine for this GPU), into a folder that
    lives as long as the process and serves every later call.

    Raises:
        BackendUnavailableError: an unknown or absent runtime or device.
        ExportError: torch asked of an exported folder, or a checkpoint that does not export.
        CheckpointError, ModelError: no such model.
    """
    if runtime not in RUNTIMES:
        raise BackendUnavailableError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    place = resolve_device(device)
    exported = _names_exported_folder(spec)
    if runtime == "auto":
        runtime = "onnxruntime" if exported else "torch"
    if runtime == "torch":
        if exported:
            raise ExportError(
                f"{spec} is an exported folder, whose graphs torch cannot run: use --runtime onnxruntime, or give the "
                "checkpoint it was exported from."
            )
        return TorchRuntime(load_model(spec, place), place)
    if runtime == "tensorrt":
        # before a long export, not after it
        target = machine_target()
        folder = Path(spec) if exported else _exported(spec, "tensorrt")
        return TensorRtRuntime(folder if read_engines(folder) else _with_engines(folder, target))
    folder = Path(spec) if exported else _exported(spec, "cpu")
    if runtime == "onnxruntime":
        return OnnxRuntime(folder, place)
    if device == "cuda":
        raise BackendUnavailableError("OpenVINO runs on the CPU here: use --device cpu, or --runtime onnxruntime.")
    return OpenVinoRuntime(folder, "bf16" if runtime == "openvino-bf16" else "f32")
