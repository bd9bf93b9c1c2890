"""A checkpoint on a runtime: torch as it is, the others after an export of its own, once per process."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from sam_edge.errors import BackendUnavailableError
from sam_edge.export.to_onnx import OnnxOptions, Precision, Products, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, rtx_targets
from sam_edge.export.typed_graphs import EnginePrecision, Picture
from sam_edge.models.quantized import Dialect
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.runtimes.cuda import machine_target
from sam_edge.runtimes.engines import Flavor, load_library, read_engines
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.scenes.synthetic import SyntheticScenes

PARITY_IMAGES = 2
"""Synthetic scenes on which a checkpoint's own export is compared with torch."""


def torch_runtime(spec: str | Path, device: str) -> TorchRuntime:
    """A checkpoint in torch.

    Raises:
        BackendUnavailableError, CheckpointError, ModelError: see `resolve_device` and `load_model`.
    """
    place = resolve_device(device)
    return TorchRuntime(load_model(spec, place), place)


_FOLDERS: dict[tuple[str, int, str], Path] = {}
"""Folders written by this process: what they came from, its newest file's time, and which form they hold."""


def exported_folder(spec: str | Path, runtime: str) -> Path:
    """A checkpoint's graphs as `runtime` (onnxruntime, openvino or tensorrt) wants them, in a folder of their own."""
    model = load_model(spec)
    dialect: Dialect = "tensorrt" if runtime == "tensorrt" else "cpu"
    # OpenVINO computes attention's integer products wrongly, and is faster with them in float
    products: Products = "none" if runtime == "openvino" else "auto"
    precision: Precision = "fp32" if model.config.quantization is None else "int8"
    key = (str(spec), _changed_ns(spec), "fp32" if precision == "fp32" else f"{dialect} {products}")
    if key not in _FOLDERS:
        folder, _ = export_onnx(
            model, _temporary_folder(), _scenes(), OnnxOptions(precision, dialect, products=products)
        )
        _FOLDERS[key] = folder
    return _FOLDERS[key]


def with_engines(folder: Path) -> Path:
    """An exported folder if it has engines, or a copy of it with engines for the GPU of this machine."""
    if read_engines(folder):
        return folder
    target = machine_target()
    key = (str(folder), _changed_ns(folder), target)
    if key not in _FOLDERS:
        out = _temporary_folder()
        exported = ExportedFolder.read(folder)
        precision: EnginePrecision = "int8" if exported.precision == "int8" else "fp32"
        build_engines(exported, out, TrtOptions(_flavor_for(target), (target,), precision=precision), _scenes())
        _FOLDERS[key] = out
    return _FOLDERS[key]


def _scenes() -> list[Picture]:
    scenes = SyntheticScenes(PARITY_IMAGES)
    return [scenes[index].image for index in range(PARITY_IMAGES)]


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
