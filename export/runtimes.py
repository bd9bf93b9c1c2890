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
from sam_edge.export.to_onnx import OnnxOptions, Precision, Products, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, rtx_targets
from sam_edge.models.known import KNOWN
from sam_edge.models.quantized import Dialect
from sam_edge.models.registry import load_model
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
    lives as long as the process and serves every later call. On the CPU all runtimes take as many threads as torch
    does (`OMP_NUM_THREADS`).

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
    # what cannot run here says so before a long export, not after it
    if runtime == "tensorrt":
        target = machine_target(place)
        folder = Path(spec).expanduser() if exported else _exported(spec, "tensorrt", "auto")
        return TensorRtRuntime(folder if read_engines(folder) else _with_engines(folder, target), place)
    if runtime.startswith("openvino") and device == "cuda":
        raise BackendUnavailableError("OpenVINO runs on the CPU here: use --device cpu, or --runtime onnxruntime.")
    # OpenVINO is faster with attention's products in float
    products: Products = "none" if runtime.startswith("openvino") else "auto"
    folder = Path(spec).expanduser() if exported else _exported(spec, "cpu", products)
    # as many as torch has, which resizes and measures beside it and with which it is compared
    threads = torch.get_num_threads()
    if runtime == "onnxruntime":
        return OnnxRuntime(folder, place, threads)
    return OpenVinoRuntime(folder, "bf16" if runtime == "openvino-bf16" else "f32", threads)


def resolve_device(device: str) -> str:
    """`auto` as `cuda` where there is a CUDA device, else `cpu`; the others as they are.

    Raises:
        BackendUnavailableError: an unknown device, or `cuda` on a machine without one.
    """
    if device not in DEVICES:
        raise BackendUnavailableError(f"device must be one of {', '.join(DEVICES)}, got {device!r}.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError("device cuda was asked for, but torch finds no CUDA device: use --device cpu.")
    return device


def _names_exported_folder(spec: str | Path) -> bool:
    """True for an exported folder; a bare known name is the known model even beside a folder of that name."""
    return not (isinstance(spec, str) and spec in KNOWN) and is_exported_folder(Path(spec).expanduser())


_FOLDERS: dict[tuple[str, int, str], Path] = {}
"""Folders written by this process: what they came from, its newest file's time, and which form they hold."""


def _exported(spec: str | Path, dialect: Dialect, products: Products) -> Path:
    """A checkpoint's graphs in a folder of their own; `dialect` and `products` matter to a quantized one only."""
    model = load_model(spec)
    precision: Precision = "fp32" if model.config.quantization is None else "int8"
    key = (str(spec), _changed_ns(spec), "fp32" if precision == "fp32" else f"{dialect} {products}")
    if key not in _FOLDERS:
        scenes = SyntheticScenes(PARITY_IMAGES)
        images = [scenes[index].image for index in range(PARITY_IMAGES)]
        folder, _ = export_onnx(model, _temporary_folder(), images, OnnxOptions(precision, dialect, products=products))
        _FOLDERS[key] = folder
    return _FOLDERS[key]


def _with_engines(folder: Path, target: str) -> Path:
    """A copy of an exported folder with engines for `target`, the GPU of this machine."""
    key = (str(folder), _changed_ns(folder), target)
    if key not in _FOLDERS:
        out = _temporary_folder()
        options = TrtOptions(_flavor_for(target), (target,))
        build_engines(ExportedFolder.read(folder), out, options)
        _FOLDERS[key] = out
    return _FOLDERS[key]


def _flavor_for(target: str) -> Flavor:
    """TensorRT-RTX where it is installed and builds for `target`, else TensorRT."""
    try:
        return "rtx" if target in rtx_targets(load_library("rtx")) else "standard"
    except BackendUnavailableError:
        return "standard"


def _changed_ns(spec: str | Path) -> int:
    """When the newest file of a MODEL changed; 0 for a known name."""
    path = Path(spec).expanduser()
    files = path.iterdir() if path.is_dir() else [path] if path.is_file() else []
    return max((file.stat().st_mtime_ns for file in files), default=0)


def _temporary_folder() -> Path:
    """A name for a new folder that is removed when the process ends."""
    return _temporary_root() / str(len(_FOLDERS))


@cache
def _temporary_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="sam-edge-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root
