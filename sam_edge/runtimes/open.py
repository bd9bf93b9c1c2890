"""Opening a MODEL on a runtime: exported folders here, checkpoints with the workshop's help."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sam_edge.errors import BackendUnavailableError, ExportError, ModelError
from sam_edge.files import parse_json
from sam_edge.halves import workshop, workshop_is_here
from sam_edge.runtimes.cuda import cuda_devices, machine_target
from sam_edge.runtimes.folder import names_exported_folder, shipped_graphs
from sam_edge.runtimes.onnx_runtime import PROVIDERS, OnnxRuntime, load_onnxruntime
from sam_edge.runtimes.openvino_runtime import OpenVinoRuntime
from sam_edge.runtimes.tensorrt_runtime import TensorRtRuntime
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.known import KNOWN
from sam_edge.segment.runtime import Runtime

RUNTIMES = (
    "auto",
    "torch",
    "onnxruntime",
    *(f"onnxruntime-{name}" for name in PROVIDERS if name != "cpu"),
    "openvino",
    "openvino-bf16",
    "tensorrt",
)
"""What `--runtime` takes. `onnxruntime-NAME` is one of its execution providers; `openvino-bf16` lets OpenVINO compute
float layers in bfloat16."""
DEVICES = ("auto", "cpu", "cuda")
"""What `--device` takes."""
Kind = Literal["torch", "onnxruntime", "openvino", "tensorrt"]


def open_runtime(spec: str | Path, runtime: str = "auto", device: str = "auto") -> Runtime:
    """Open a MODEL on a runtime.

    `auto` is torch for what holds weights and ONNX Runtime for an exported folder; where torch is absent, a known
    name that ships as graphs is those. Any other runtime has a checkpoint exported first (fp32, or int8 if it is
    quantized; for `tensorrt` with an engine for this GPU), into a folder that lives as long as the process and serves
    every later call. On the CPU all runtimes of graphs take `cpu_threads()`.

    Raises:
        BackendUnavailableError: an unknown or absent runtime or device.
        ExportError: torch asked of an exported folder, or a checkpoint that does not export.
        CheckpointError, ModelError: no such model.
    """
    check_runtime(runtime, device)
    exported = Path(spec).expanduser() if names_exported_folder(spec) else None
    if exported is None and runtime != "torch" and not workshop_is_here():
        exported = shipped_graphs(spec)
        if exported is None and isinstance(spec, str) and spec not in KNOWN and not Path(spec).expanduser().exists():
            raise ModelError(f"{spec!r} is neither a known model nor a file or folder.")
    if runtime in ("auto", "torch"):
        if exported is None:
            opening = workshop("sam_edge.export.opening", f"opening {spec}, which holds weights,")
            return opening.torch_runtime(spec, device)
        if runtime == "torch":
            raise ExportError(
                f"{spec} is an exported folder, whose graphs torch cannot run: use --runtime onnxruntime, or give the "
                "checkpoint it was exported from."
            )
        runtime = "onnxruntime"
    start = starter(runtime, device)
    if exported is None:
        opening = workshop("sam_edge.export.opening", f"exporting {spec}, which holds weights,")
        exported = opening.exported_folder(spec, kind_of(runtime))
    return start(exported)


def open_for_many(spec: str | Path, runtime: str = "auto", device: str = "auto") -> Runtime:
    """`open_runtime` for more than a few pictures: `auto` has a quantized checkpoint exported on the CPU.

    Torch simulates its integers, several times as slowly as ONNX Runtime multiplies them; and graphs are what of it is
    used. An export takes about as long as some ten pictures.
    """
    if runtime == "auto" and device != "cuda" and _holds_integers(spec) and not cuda_devices():
        runtime = "onnxruntime" if workshop_is_here() else runtime
    return open_runtime(spec, runtime, device)


def _holds_integers(spec: str | Path) -> bool:
    """Whether a MODEL is the folder of a quantized checkpoint."""
    config = Path(spec).expanduser() / "config.json"
    if str(spec) in KNOWN or not config.is_file():
        return False
    try:
        return bool(parse_json(config.read_bytes()).get("quantization"))
    except (OSError, ValueError, AttributeError):
        # whoever opens it says what is wrong
        return False


def check_runtime(runtime: str, device: str) -> None:
    """Raises BackendUnavailableError for a runtime or a device that there is not, or that do not go together."""
    if runtime not in RUNTIMES:
        raise BackendUnavailableError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    if device not in DEVICES:
        raise BackendUnavailableError(f"device must be one of {', '.join(DEVICES)}, got {device!r}.")
    if device == "cuda" and (runtime.startswith("openvino") or runtime.endswith(("-coreml", "-openvino"))):
        raise BackendUnavailableError(f"{runtime} does not run on CUDA: use --device cpu, or --runtime onnxruntime.")


def starter(runtime: str, device: str) -> Callable[[Path], Runtime]:
    """What opens an exported folder on a runtime of graphs: what cannot run here says so before a long export.

    Raises:
        BackendUnavailableError: see `open_runtime`.
    """
    threads = cpu_threads()
    if runtime.startswith("openvino"):
        return lambda folder: OpenVinoRuntime(folder, "bf16" if runtime == "openvino-bf16" else "f32", threads)
    if runtime == "tensorrt":
        if device == "cpu":
            raise BackendUnavailableError("TensorRT runs on CUDA devices, got cpu: give --device cuda.")
        machine_target()
        opening = workshop("sam_edge.export.opening", "building engines") if workshop_is_here() else None
        return lambda folder: TensorRtRuntime(folder if opening is None else opening.with_engines(folder))
    provider = runtime.partition("-")[2] or onnx_provider(device)
    return lambda folder: OnnxRuntime(folder, provider, threads)


def onnx_provider(device: str) -> str:
    """Which of ONNX Runtime's providers a device means: CUDA for `auto` where both have it.

    Raises:
        BackendUnavailableError: `cuda` where there is no such device.
    """
    if device == "cpu":
        return "cpu"
    if device == "cuda" and not cuda_devices():
        raise BackendUnavailableError("device cuda was asked for, but there is no CUDA device: use --device cpu.")
    there = device == "cuda" or PROVIDERS["cuda"] in load_onnxruntime().get_available_providers()
    return "cuda" if there and cuda_devices() else "cpu"


def kind_of(runtime: str) -> Kind:
    """The library that a runtime's name is about."""
    first = runtime.partition("-")[0]
    assert first in ("torch", "onnxruntime", "openvino", "tensorrt")
    return first  # type: ignore[return-value]
