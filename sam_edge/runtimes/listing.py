"""Which runtimes are here, and what they compute in on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sam_edge.errors import BackendUnavailableError
from sam_edge.halves import EXTRAS
from sam_edge.kernels.compiler import compiler_version
from sam_edge.kernels.library import level
from sam_edge.runtimes.clipping import clips_products
from sam_edge.runtimes.cuda import cuda_devices
from sam_edge.runtimes.engines import MODULES, load_library
from sam_edge.runtimes.onnx_runtime import DISTRIBUTIONS, ON_GPU, PROVIDERS, clash, load_onnxruntime
from sam_edge.runtimes.openvino_runtime import core
from sam_edge.runtimes.processor import features

UNTRIED = "what runs on GPUs has been tested without one only"
"""What is to be known of everything here that needs one."""


@dataclass(frozen=True)
class Listed:
    """One library that runs models."""

    name: str
    here: bool
    version: str | None
    computes: str
    """Precisions on this processor or GPU, and how; empty where it is not here."""
    remedy: str
    """What installs it, or mends what is wrong with it; empty where there is nothing to do."""


def listed() -> list[Listed]:
    """Every library that sam-edge knows to run models with."""
    return [
        _found("onnxruntime", DISTRIBUTIONS, "onnxruntime", _onnxruntime, clash() or ""),
        _found("openvino", ("openvino",), "openvino", _openvino),
        _found("tensorrt-rtx", ("tensorrt-rtx",), "tensorrt_rtx", lambda: _tensorrt("rtx")),
        _found("tensorrt", ("tensorrt",), "tensorrt", lambda: _tensorrt("standard")),
        _found("torch", ("torch",), "torch", lambda: "fp32; integers are simulated"),
    ]


def _found(
    name: str, distributions: tuple[str, ...], module: str, computes: Callable[[], str], wrong: str = ""
) -> Listed:
    for distribution in distributions:
        try:
            number = version(distribution)
        except PackageNotFoundError:
            continue
        try:
            return Listed(name, True, number, computes(), wrong)
        except BackendUnavailableError as error:
            return Listed(name, False, number, "", str(error))
    extra = f"pip install 'sam-edge[{EXTRAS[module]}]'"
    return Listed(name, False, None, "", extra)


def _onnxruntime() -> str:
    library = load_onnxruntime()
    fast = [name for name in ("AMX int8", "VNNI", "dot products", "int8 matrices") if name in features()]
    integers = f"int8 by {', '.join(fast)}" if fast else "int8 at about float's speed"
    if clips_products():
        integers = "int8 at about float's speed (no VNNI: graphs are read without signs)"
    there = library.get_available_providers()
    # what it was built with, but for what needs a device that is not here
    usable = [name for name, known in PROVIDERS.items() if known in there and (name not in ON_GPU or cuda_devices())]
    untried = f"; {UNTRIED}" if set(usable) & set(ON_GPU) else ""
    return f"fp32, {integers}; {_kernels()}; providers: {', '.join(usable)}{untried}"


def _kernels() -> str:
    """What sam-edge's own kernels are compiled for, and what they take beside integers, here."""
    if not level():
        return "without sam-edge's own kernels"
    others = {level(), level(rounded=True)} - {level()}
    return f"attention by sam-edge's own kernels ({level()}{''.join(f'; in INT8 models {name}' for name in others)})"


def _openvino() -> str:
    names = {"FP32": "fp32", "BF16": "bf16", "FP16": "fp16", "INT8": "int8"}
    able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return f"{', '.join(name for known, name in names.items() if known in able)}; {_kernels()}"


def _tensorrt(flavor: Any) -> str:
    load_library(flavor)
    devices = cuda_devices()
    gpus = ", ".join(f"{device.name} ({device.target})" for device in devices)
    if not devices:
        return f"builds engines; no GPU here to run them ({MODULES[flavor]})"
    kernels = f"CUDA kernels by {compiler_version()}" if compiler_version() else "without a compiler for CUDA kernels"
    return f"on {gpus}; {kernels}; {UNTRIED}"
