"""sam-edge: compress, quantize, export and measure Segment Anything models.

What is named here is the whole public surface. Nothing is imported before it is asked for: `import sam_edge` is
instant, and only what makes models needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_edge.api import compress, evaluate, export, load, quantize
    from sam_edge.errors import SamEdgeError
    from sam_edge.hub import Pretrained
    from sam_edge.segment.everything import EverythingGenerator
    from sam_edge.segment.predictor import SamPredictor

__version__ = "0.2.0"

__all__ = [
    "EverythingGenerator",
    "Pretrained",
    "SamEdgeError",
    "SamPredictor",
    "compress",
    "evaluate",
    "export",
    "load",
    "quantize",
]

_PLACES = {
    "load": "api",
    "SamPredictor": "segment.predictor",
    "EverythingGenerator": "segment.everything",
    "SamEdgeError": "errors",
    "Pretrained": "hub",
}
"""Modules of the names that are no packages; `compress`, `quantize`, `export` and `evaluate` are (`sam_edge.verbs`)."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(import_module(f"sam_edge.{_PLACES[name]}"), name)
    elif name in __all__:
        value = import_module(f"sam_edge.{name}")
    else:
        raise AttributeError(f"module 'sam_edge' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
