"""TensorRT engines in an exported folder, and TensorRT as a runtime.

Two libraries share one API and one set of files here: TensorRT-RTX (`rtx`, builds anywhere for a list of GPUs) and
TensorRT itself (`standard`, builds on the GPU it will run on). Neither is imported before it is used.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sam_edge.errors import BackendUnavailableError, CheckpointError, ExportError, PromptError
from sam_edge.export.onnx_runtime import ExportedFolder
from sam_edge.export.split_graphs import require_split
from sam_edge.files import sha256_of
from sam_edge.models.drawn_prompts import in_parts
from sam_edge.models.prompts import Prompts
from sam_edge.models.split import cut
from sam_edge.segment.runtime import Prediction

Flavor = Literal["rtx", "standard"]
Shapes = dict[str, dict[str, list[int]]]

ENGINES = "engine.json"
SCHEMA = 1
ALIGNMENT_BYTES = 256
"""TensorRT's demand on the address of what it reads."""

_MODULES: dict[str, str] = {"rtx": "tensorrt_rtx", "standard": "tensorrt"}
_INSTALL: dict[str, str] = {
    "rtx": "pip install 'sam-edge[rtx]'",
    "standard": "pip install tensorrt --extra-index-url https://pypi.nvidia.com",
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
    """Precision of the graph: fp32 (products may run in TF32, TensorRT's default), fp16 or int8."""
    shapes: Shapes
    """Per input: its `min`, `opt` and `max` shape."""
    onnx_sha256: str
    """sha256 of the graph it was built from."""
    sha256: str
    """sha256 of the engine's file."""
    build_seconds: float
    """Time of the build."""
    bytes: int
    """Size of the engine's file."""

    def largest(self, name: str, axis: int) -> int:
        """The largest size of an input's axis."""
        return self.shapes[name]["max"][axis]


def load_library(flavor: Flavor) -> Any:
    """The flavor's module.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be loaded here.
    """
    try:
        return importlib.import_module(_MODULES[flavor])
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"{_MODULES[flavor]} is not installed: {_INSTALL[flavor]}.") from error
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BackendUnavailableError(f"{_MODULES[flavor]} cannot be loaded here: {reason}.") from error


@cache
def logger(flavor: Flavor) -> Any:
    """The library's one logger (it ignores a second): silent, and `errors` holds what went wrong last."""
    trt = load_library(flavor)

    base: Any = trt.ILogger

    class Errors(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(msg.split()))

        def told(self) -> str:
            """What was logged since the last call, on one line."""
            text, self.errors = "; ".join(dict.fromkeys(self.errors)), []
            return text or "the library gave no reason"

    return Errors()


def machine_target(device: torch.device | str = "cuda") -> str:
    """The compute capability of a CUDA device, as `sm89`.

    Raises:
        BackendUnavailableError: `device` is no CUDA device, or there is none.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailableError("TensorRT needs a CUDA device and there is none: use --runtime onnxruntime.")
    if torch.device(device).type != "cuda":
        raise BackendUnavailableError(f"TensorRT runs on CUDA devices, got {device}: give --device cuda.")
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def write_engines(folder: Path, engines: list[Engine]) -> None:
    """Write `engine.json`."""
    values = {"schema": SCHEMA, "engines": [asdict(engine) for engine in engines]}
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
        values = json.loads(path.read_text())
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']!r} is not {SCHEMA}")
        return [Engine(**entry) for entry in values["engines"]]
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


class TensorRtRuntime:
    """An exported folder's engines on a CUDA device; results stay there.

    Images and prompt sets beyond what the engines were built for run in several calls.
    """

    def __init__(self, folder: str | Path, device: str = "cuda", target: str | None = None) -> None:
        """`target` None takes the engines built for the device's compute capability.

        Raises:
            BackendUnavailableError: no CUDA device, no engine for it, or the engines' library is absent.
            CheckpointError: no exported folder, or engines that do not belong to it.
            ExportError: an engine that this version of its library does not load.
        """
        self.name = "tensorrt"
        self.folder = ExportedFolder.read(folder)
        self.config = self.folder.config
        here = machine_target(device)
        self.device = torch.device(device)
        engines = self._engines = choose_engines(self.folder, target or here)
        self._decoder = engines["decoder"]
        self._largest_batch = min(engines["encoder"].largest("pixels", 0), self._decoder.largest("point_labels", 0))
        with torch.cuda.device(self.device):
            self._graphs = {
                name: _LoadedEngine(engine, self.folder.path / engine.file, self.device)
                for name, engine in engines.items()
            }

    def synchronise(self) -> None:
        """Wait for everything enqueued."""
        torch.cuda.current_stream(self.device).synchronize()

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embeddings."""
        parts = pixels.float().split(self._largest_batch)
        return torch.cat([self._graphs["encoder"]({"pixels": part})["embeddings"] for part in parts])

    @torch.inference_mode()
    def decode(
        self, embeddings: Float[Tensor, "b c g g"], prompts: Prompts
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Mask logits and predicted IoU.

        Raises:
            PromptError: more points per prompt than the engine was built for.
        """

        def run(images: Tensor, part: Prompts) -> tuple[Tensor, Tensor]:
            inputs = {"embeddings": images, **decoder_tensors(part, self.config.mask_size, self.device)}
            found = self._graphs["decoder"](inputs)
            return found["logits"], found["iou"]

        return decode_in_parts(run, embeddings, prompts, self._decoder, self._largest_batch)

    @torch.inference_mode()
    def prepare(self, embeddings: Float[Tensor, "1 c g g"]) -> dict[str, Tensor]:
        """What one image's prompts share.

        Raises:
            ExportError: a folder that was exported before it had these graphs.
        """
        require_split(self.folder)
        return {"embeddings": embeddings, **self._graphs["prepare"]({"embeddings": embeddings})}

    @torch.inference_mode()
    def predict(self, state: dict[str, Tensor], prompts: Prompts) -> Prediction:
        """Predicted IoU of N prompt sets; what the parts do not answer (`in_parts`) goes through the whole decoder.

        Raises:
            PromptError: more points per prompt than the engine was built for.
        """
        if not in_parts(prompts, self.config.decoder):
            logits, iou = self.decode(state["embeddings"], prompts)
            return Prediction(iou[0].cpu(), logits[0].cpu())
        engine = self._engines["predict"]
        check_points(prompts, engine)
        coords, labels = prompts.coords.to(self.device, torch.float32), prompts.labels.to(self.device, torch.int64)
        image = {name: state[name] for name in engine.shapes if name in state}
        largest = engine.largest("point_labels", 1)
        bands = [
            self._graphs["predict"]({**image, "point_coords": some, "point_labels": kinds})
            for some, kinds in zip(coords.split(largest, 1), labels.split(largest, 1), strict=True)
        ]
        sets = {name: torch.cat([band[name] for band in bands]) for name in bands[0]}
        return Prediction(sets.pop("iou").cpu(), (state, sets))

    @torch.inference_mode()
    def upscale(
        self, prediction: Prediction, sets: Int[Tensor, "k"], masks: Int[Tensor, "k"]
    ) -> Float[Tensor, "k h w"]:
        """Low-resolution logits of some masks; each set among them is up-scaled once."""
        if isinstance(prediction.handle, Tensor):
            return prediction.handle[sets, masks]
        state, parts = prediction.handle
        engine = self._engines["upscale"]
        image = {name: state[name] for name in engine.shapes if name in state}
        needed, places = cut(parts, sets.to(self.device))
        logits = torch.empty(len(sets), self.config.mask_size, self.config.mask_size)
        largest = engine.largest("mask_tokens", 0)
        for first in range(0, len(needed["mask_tokens"]), largest):
            here = (places >= first).logical_and(places < first + largest).nonzero()[:, 0]
            rows = {name: value[first : first + largest] for name, value in needed.items() if name in engine.shapes}
            wanted = {"places": places[here] - first, "masks": masks.to(self.device)[here]}
            logits[here.cpu()] = self._graphs["upscale"]({**image, **rows, **wanted})["logits"].cpu()
        return logits


def decode_in_parts(
    run: Callable[[Tensor, Prompts], tuple[Tensor, Tensor]],
    embeddings: Float[Tensor, "b c g g"],
    prompts: Prompts,
    engine: Engine,
    largest_batch: int,
) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
    """Decode by calls of at most `largest_batch` images and as many sets as the decoder's `engine` takes.

    Raises:
        PromptError: more points per prompt than `engine` takes.
    """
    check_points(prompts, engine)
    batch, sets = prompts.labels.shape[:2]
    largest_sets = engine.largest("point_labels", 1)
    rows = []
    for image in range(0, batch, largest_batch):
        images = slice(image, image + largest_batch)
        parts = [
            run(embeddings[images], prompts.part(slice(first, first + largest_sets), images))
            for first in range(0, sets, largest_sets)
        ]
        rows.append([torch.cat(values, 1) if len(parts) > 1 else values[0] for values in zip(*parts, strict=True)])
    logits, iou = (torch.cat(values) if len(rows) > 1 else values[0] for values in zip(*rows, strict=True))
    return logits, iou


def check_points(prompts: Prompts, engine: Engine) -> None:
    """Raises PromptError for more points per prompt than `engine` takes."""
    points, largest = prompts.labels.shape[2], engine.largest("point_labels", 2)
    if points > largest:
        raise PromptError(
            f"a prompt of {points} points is more than this engine's {largest}: build it with a larger --max-points."
        )


def decoder_tensors(prompts: Prompts, mask_size: int, device: torch.device) -> dict[str, Tensor]:
    """The decoder graph's prompt inputs, by name, on `device`."""
    batch, sets = prompts.labels.shape[:2]
    if prompts.masks is None:
        masks = torch.zeros(batch, sets, 1, mask_size, mask_size, device=device)
    else:
        masks = prompts.masks.to(device, torch.float32)
    return {
        "point_coords": prompts.coords.to(device, torch.float32),
        "point_labels": prompts.labels.to(device, torch.int64),
        "mask_input": masks,
        "has_mask_input": torch.full((batch, sets), float(prompts.masks is not None), device=device),
    }


def bindable(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device` in memory that TensorRT takes: dense, and aligned to 256 bytes (slices may not be)."""
    value = value.to(device).contiguous()
    return value.clone() if value.data_ptr() % ALIGNMENT_BYTES else value


class _LoadedEngine:
    """A deserialised engine with its execution context: named tensors in, named tensors out."""

    def __init__(self, engine: Engine, path: Path, device: torch.device) -> None:
        trt = load_library(engine.flavor)
        log = logger(engine.flavor)
        self.device = device
        self._log = log
        # the context holds no reference to what it was made by
        self._library = trt.Runtime(log)
        self._engine = self._library.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise ExportError(
                f"{path.name}, built by {_MODULES[engine.flavor]} {engine.version}, does not load in "
                f"{trt.__version__} here ({log.told()}): build it again."
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._outputs = {
            name: _torch_type(trt, self._engine.get_tensor_dtype(name))
            for name in names
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        }
        # on the default stream TensorRT would synchronise around every call
        self._stream = torch.cuda.Stream(device)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Enqueue one call, ordered after the current stream's work and before what it does next."""
        with torch.cuda.device(self.device):
            return self._enqueue(inputs)

    def _enqueue(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        current = torch.cuda.current_stream(self.device)
        bound = {name: bindable(value, self.device) for name, value in inputs.items()}
        for name, value in bound.items():
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise ExportError(f"the engine does not take {name} of shape {tuple(value.shape)}: {self._log.told()}.")
            self._context.set_tensor_address(name, value.data_ptr())
        outputs = {
            name: torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=self.device)
            for name, dtype in self._outputs.items()
        }
        for name, value in outputs.items():
            self._context.set_tensor_address(name, value.data_ptr())
        self._stream.wait_stream(current)
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise ExportError(f"the engine did not run: {self._log.told()}.")
        # also keeps `bound` safe: its memory is reused on the current stream, hence after this call
        current.wait_stream(self._stream)
        return outputs


def _torch_type(trt: Any, dtype: Any) -> torch.dtype:
    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
    }[dtype]
