"""TensorRT as a runtime: an exported folder's engines on a CUDA device, their memory through pycuda."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from sam_edge.errors import BackendUnavailableError, ExportError, PromptError
from sam_edge.halves import missing
from sam_edge.runtimes.cuda import machine_target
from sam_edge.runtimes.engines import (
    MODULES,
    Engine,
    choose_engines,
    load_library,
    logger,
    require_shape,
    require_version,
)
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.graphs import GraphRuntime, Values
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Prediction


def load_pycuda() -> tuple[Any, Any]:
    """pycuda's driver and its arrays, in the first device's primary context, which other libraries share.

    Raises:
        BackendUnavailableError: pycuda is not installed, or finds no device.
    """
    try:
        import pycuda.autoprimaryctx  # noqa: F401 - makes the context
        from pycuda import driver, gpuarray
    except ModuleNotFoundError as error:
        raise missing(error, "TensorRT's runtime") from error
    except Exception as error:
        # its own errors are classes of a module that may not have been loaded
        raise BackendUnavailableError(f"pycuda cannot start here: {error}.") from error
    return driver, gpuarray


class TensorRtRuntime(GraphRuntime):
    """An exported folder's engines on a CUDA device; embeddings and the split state stay there.

    Images and prompt sets beyond what the engines were built for run in several calls.
    """

    def __init__(self, folder: str | Path, target: str | None = None) -> None:
        """`target` None takes the engines built for the device's compute capability.

        Raises:
            BackendUnavailableError: no CUDA device, no engine for it, or the engines' library or pycuda is absent.
            CheckpointError: no exported folder, or engines that do not belong to it.
            ExportError: an engine that this version of its library does not load.
        """
        super().__init__(ExportedFolder.read(folder))
        self.name, self.device = "tensorrt", "cuda"
        here = machine_target()
        self._engines = choose_engines(self.folder, target or here)
        driver, self._arrays = load_pycuda()
        self._stream = driver.Stream()
        self._loaded = {
            name: LoadedEngine(engine, self.folder.path / engine.file, self._arrays, self._stream)
            for name, engine in self._engines.items()
        }
        self.keeps_arrays = False
        self.sets_at_once = min(
            self._engines[name].largest("point_labels", 1) for name in ("decoder", "predict") if name in self._engines
        )
        self._largest_batch = min(
            self._engines["encoder"].largest("pixels", 0), self._engines["decoder"].largest("point_labels", 0)
        )

    def synchronise(self) -> None:
        """Wait for everything enqueued."""
        self._stream.synchronize()

    def _run(self, graph: str, inputs: Values) -> Values:
        return self._loaded[graph](inputs)

    def _host(self, value: Any) -> np.ndarray:
        self.synchronise()
        return value if isinstance(value, np.ndarray) else value.get()

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> tuple[Any, ...]:
        """Image embeddings, in as many arrays as it took calls."""
        return tuple(
            super(TensorRtRuntime, self).encode(pixels[some]) for some in slices(len(pixels), self._largest_batch)
        )

    def host(self, embeddings: tuple[Any, ...]) -> Float32[np.ndarray, "b c g g"]:
        """Embeddings as an array, to compare them with another runtime's."""
        return np.concat([self._host(part) for part in embeddings])

    def decode(
        self, embeddings: tuple[Any, ...], prompts: Prompts
    ) -> tuple[Float32[np.ndarray, "b n 4 h w"], Float32[np.ndarray, "b n 4"]]:
        """Mask logits and predicted IoU.

        Raises:
            PromptError: more points per prompt than the engine was built for.
        """
        check_points(prompts, self._engines["decoder"])
        batches = slices(len(prompts.labels), self._largest_batch)
        found = [
            super(TensorRtRuntime, self).decode(part, prompts.part(slice(None), images))
            for part, images in zip(embeddings, batches, strict=True)
        ]
        logits, iou = (np.concat(values) for values in zip(*found, strict=True))
        return logits, iou

    def prepare(self, embeddings: tuple[Any, ...]) -> Values:
        """What one image's prompts share."""
        (only,) = embeddings
        return {**super().prepare(only), "embeddings": embeddings}

    def predict(self, state: Values, prompts: Prompts) -> Prediction:
        """Predicted IoU of N prompt sets.

        Raises:
            PromptError: more points per prompt than the engine was built for.
        """
        check_points(prompts, self._engines["predict"])
        return super().predict(state, prompts)


def slices(count: int, most: int) -> Iterable[slice]:
    """`count` things, at most `most` at a time."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def check_points(prompts: Prompts, engine: Engine) -> None:
    """Raises PromptError for more points per prompt than `engine` takes."""
    points, largest = prompts.labels.shape[2], engine.largest("point_labels", 2)
    if points > largest:
        raise PromptError(
            f"a prompt of {points} points is more than this engine's {largest}: build it with a larger --max-points."
        )


class LoadedEngine:
    """A deserialised engine with its execution context: named arrays in, arrays on the device out."""

    def __init__(self, engine: Engine, path: Path, arrays: Any, stream: Any) -> None:
        """`arrays` is pycuda.gpuarray, `stream` one of pycuda's streams."""
        trt = load_library(engine.flavor)
        require_version(engine, trt.__version__)
        self._described = engine
        self._log = logger(engine.flavor)
        self._arrays, self._stream = arrays, stream
        # the context holds no reference to what it was made by
        self._library = trt.Runtime(self._log)
        self._engine = self._library.deserialize_cuda_engine(path.read_bytes())
        self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise ExportError(
                f"{path.name}, built by {MODULES[engine.flavor]} {engine.version}, does not load in "
                f"{trt.__version__} here ({self._log.told()}): build it again."
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        kinds = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = {name for name in names if kinds[name] == trt.TensorIOMode.INPUT}
        self._outputs = {
            name: trt.nptype(self._engine.get_tensor_dtype(name))
            for name in names
            if kinds[name] == trt.TensorIOMode.OUTPUT
        }

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One call, finished when it returns: what was bound may be freed then."""
        bound = {name: self._on_device(value) for name, value in inputs.items() if name in self._inputs}
        for name, value in bound.items():
            require_shape(self._described, name, tuple(value.shape))
            if not self._context.set_input_shape(name, tuple(value.shape)):
                raise ExportError(f"the engine does not take {name} of shape {tuple(value.shape)}: {self._log.told()}.")
            self._context.set_tensor_address(name, int(value.gpudata))
        outputs = {
            name: self._arrays.empty(tuple(self._context.get_tensor_shape(name)), dtype)
            for name, dtype in self._outputs.items()
        }
        for name, value in outputs.items():
            self._context.set_tensor_address(name, int(value.gpudata))
        if not self._context.execute_async_v3(self._stream.handle):
            raise ExportError(f"the engine did not run: {self._log.told()}.")
        self._stream.synchronize()
        return outputs

    def _on_device(self, value: Any) -> Any:
        # pycuda's own allocations are aligned to the 256 bytes that TensorRT asks for
        return self._arrays.to_gpu(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
