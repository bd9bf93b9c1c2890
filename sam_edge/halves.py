"""The two halves of sam-edge, and what brings a missing one.

What runs on a device needs NumPy and one runtime; what makes models needs torch and its company, and is not imported
before it is asked for.
"""

import importlib
from importlib.util import find_spec
from types import ModuleType

from sam_edge.errors import BackendUnavailableError

EXTRAS = {
    **dict.fromkeys(
        (
            "torch",
            "torchvision",
            "segment_anything",
            "torch_pruning",
            "timm",
            "onnx",
            "onnxscript",
            "safetensors",
            "huggingface_hub",
            "matplotlib",
            "cv2",
        ),
        "workshop",
    ),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt_rtx": "rtx",
    "tensorrt": "tensorrt",
}
"""Modules that the device half does without, and the extra that brings each."""


def missing(error: ModuleNotFoundError, what: str = "this command") -> BackendUnavailableError:
    """The one line that installs what an import did not find.

    Raises:
        ModuleNotFoundError: `error` itself, where it is about a module that no extra brings: a bug.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        raise error
    return BackendUnavailableError(f"{what} needs {module}: pip install 'sam-edge[{EXTRAS[module]}]'.")


def workshop(module: str, what: str) -> ModuleType:
    """A module of the workshop half, for the few places of the device half that lead there; `what` asks for it.

    Raises:
        BackendUnavailableError: the workshop is not installed; the line says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error, what) from error


def workshop_is_here() -> bool:
    """Whether torch is installed, without which nothing of the workshop works."""
    return find_spec("torch") is not None
