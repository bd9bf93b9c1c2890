"""TensorRT engines beside an exported folder's graphs: `engine.json`, and the libraries that make and run them.

Two libraries share one API and one set of files here: TensorRT-RTX (`rtx`, builds anywhere for a list of GPUs) and
TensorRT itself (`standard`, builds on the GPU it will run on). Neither is imported before it is used.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sam_edge.errors import BackendUnavailableError, CheckpointError, ExportError
from sam_edge.files import parse_json, sha256_of
from sam_edge.runtimes.folder import ExportedFolder, own_file

Flavor = Literal["rtx", "standard"]
Shapes = dict[str, dict[str, list[int]]]

ENGINES = "engine.json"
SCHEMA = 1

MODULES: dict[str, str] = {"rtx": "tensorrt_rtx", "standard": "tensorrt"}
_INSTALL: dict[str, str] = {
    "rtx": "pip install 'sam-edge[rtx]'",
    "standard": "pip install 'sam-edge[tensorrt]' --extra-index-url https://pypi.nvidia.com",
}


@dataclass(frozen=True)
class Engine:
    """One built engine: an entry of `engine.json`."""

    file: str
    """Name of the engine's file, as `encoder.sm89.engine`."""
    graph: str
    """`encoder`, `decoder`, or a part of the split decoder."""
    target: str
    """The compute capability it was built for, as `sm89`."""
    flavor: Flavor
    """The library that built it, and the only one that can run it."""
    version: str
    """That library's version."""
    precision: str
    """Precision of the graph: fp32 (products may run in TF32, TensorRT's default), fp16, bf16, int8 or fp8."""
    shapes: Shapes
    """Per input: its `min`, `opt` and `max` shape."""
    onnx_sha256: str
    """sha256 of the exported graph it goes back to."""
    sha256: str
    """sha256 of the engine's file."""
    build_seconds: float
    """Time of the build."""
    bytes: int
    """Size of the engine's file."""
    onnx: str = ""
    """The graph it was built from, with its types: a file beside it."""
    note: str = ""
    """Why it is larger than its graph in float32, where it is."""
    state: Literal["built, not run", "run"] = "built, not run"
    """Whether it has run on a GPU, which no build here does."""

    def largest(self, name: str, axis: int) -> int:
        """The largest size of an input's axis."""
        return self.shapes[name]["max"][axis]


def load_library(flavor: Flavor) -> Any:
    """The flavor's module.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be loaded here.
    """
    try:
        return importlib.import_module(MODULES[flavor])
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"{MODULES[flavor]} is not installed: {_INSTALL[flavor]}.") from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BackendUnavailableError(f"{MODULES[flavor]} cannot be loaded here: {reason}.") from error


@cache
def logger(flavor: Flavor) -> Any:
    """The library's one logger (it ignores a second): silent, and `errors` and `lines` hold what it heard."""
    trt = load_library(flavor)

    base: Any = trt.ILogger

    class Errors(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            line = " ".join(msg.split())
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(line)
            if severity != trt.ILogger.VERBOSE:
                self.lines.append(f"{severity.name.lower()}: {line}")

        def kept(self) -> list[str]:
            """All that was logged since the last call."""
            lines, self.lines = self.lines, []
            return lines

        def told(self) -> str:
            """What was logged since the last call, on one line."""
            text, self.errors = "; ".join(dict.fromkeys(self.errors)), []
            return text or "the library gave no reason"

    return Errors()


def require_version(engine: Engine, version: str) -> None:
    """Check that an engine was built by the library's version that is here: others refuse it, or worse, do not.

    Raises:
        BackendUnavailableError: it was built by another.
    """
    if engine.version != version:
        name = MODULES[engine.flavor]
        raise BackendUnavailableError(
            f"{engine.file} was built by {name} {engine.version} and {version} is here: build it again, or install "
            f"{name.replace('_', '-')}=={engine.version}."
        )


def require_shape(engine: Engine, name: str, shape: tuple[int, ...]) -> None:
    """Check an input's shape against the profile an engine was built with.

    Raises:
        ExportError: it does not fit; the message says which option would have made it fit.
    """
    steps = engine.shapes[name]
    fits = len(shape) == len(steps["max"]) and all(
        low <= size <= high for low, size, high in zip(steps["min"], shape, steps["max"], strict=True)
    )
    if not fits:
        raise ExportError(
            f"{engine.file} takes {name} from {steps['min']} to {steps['max']}, got {list(shape)}: build it again with "
            "larger --max-batch, --max-sets or --max-points."
        )


def write_engines(folder: Path, engines: list[Engine], graphs: Mapping[str, Any] | None = None) -> None:
    """Write `engine.json`: the engines, and what is to be said of the graphs they were built from."""
    values = {"schema": SCHEMA, "engines": [asdict(engine) for engine in engines], "typed": graphs}
    (folder / ENGINES).write_text(json.dumps(values, indent=1) + "\n")


def read_engines(folder: str | Path) -> list[Engine]:
    """The engines of an exported folder, as `engine.json` lists them; empty where none were built.

    Raises:
        CheckpointError: an `engine.json` that is not one.
    """
    path = Path(folder) / ENGINES
    if not path.is_file():
        return []
    try:
        values = parse_json(path.read_bytes())
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']!r} is not {SCHEMA}")
        found = [Engine(**entry) for entry in values["engines"]]
        for engine in found:
            own_file(engine.file)
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe engines: {error}.") from error


def choose_engines(folder: ExportedFolder, target: str) -> dict[str, Engine]:
    """The engine of each graph for `target`, checked against the files beside it.

    Raises:
        BackendUnavailableError: none was built for `target`; the message lists what there is.
        CheckpointError: an engine that is missing, was changed, or comes from other graphs.
    """
    built = read_engines(folder.path)
    chosen = {engine.graph: engine for engine in built if engine.target == target}
    if set(folder.graphs) - set(chosen):
        there = ", ".join(sorted({engine.target for engine in built})) or "none"
        raise BackendUnavailableError(
            f"{folder.path} has no engines for {target} (built: {there}): build them on this machine or with "
            f"--target {target}, or use --runtime onnxruntime."
        )
    for name, engine in chosen.items():
        path = folder.path / engine.file
        if not path.is_file() or sha256_of(path) != engine.sha256:
            raise CheckpointError(f"{path} is missing or was changed since it was built: build it again.")
        if engine.onnx_sha256 != folder.graphs[name]["sha256"]:
            raise CheckpointError(f"{path} was built from another {name}.onnx: build it again.")
    return chosen
