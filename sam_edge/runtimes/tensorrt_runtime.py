"""TensorRT as a runtime: an exported folder's engines on a CUDA device.

All that a runtime does goes through one stream, so nothing waits but who wants an answer on the host. A call whose
shapes came before is recorded as a CUDA graph and replayed: what it costs then is one launch.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from sam_edge.errors import ExportError, PromptError
from sam_edge.kernels.driver import DriverError
from sam_edge.kernels.gpu import DeviceArray
from sam_edge.kernels.launcher import Gpu
from sam_edge.runtimes.acceleration import acceleration, has_kernels
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

RECORDED = 2
"""Calls of an engine that are recorded at most: each has the engine's working memory to itself."""


class TensorRtRuntime(GraphRuntime):
    """An exported folder's engines on a CUDA device; embeddings and the split state stay there.

    Images and prompt sets beyond what the engines were built for run in several calls.
    """

    def __init__(self, folder: str | Path, target: str | None = None) -> None:
        """`target` None takes the engines built for the device's compute capability.

        Raises:
            BackendUnavailableError: no CUDA device, no engine for it, or the engines' library, or both of cuda.bindings
                and pycuda are absent.
            CheckpointError: no exported folder, or engines that do not belong to it.
            ExportError: an engine that this version of its library does not load.
        """
        super().__init__(ExportedFolder.read(folder))
        self.name, self.device = "tensorrt", "cuda"
        here = machine_target()
        self._engines = choose_engines(self.folder, target or here)
        self._gpu = Gpu()
        self._loaded = {
            name: LoadedEngine(engine, self.folder.path / engine.file, self._gpu)
            for name, engine in self._engines.items()
        }
        self.acceleration = acceleration(self._gpu if has_kernels(self._gpu) else None, self.config, self._parts)
        """Pictures and masks by sam-edge's CUDA kernels, where they can be had."""
        self.keeps_arrays = False
        self.sets_at_once = min(
            self._engines[name].largest("point_labels", 1) for name in ("decoder", "predict") if name in self._engines
        )
        self._largest_batch = min(
            self._engines["encoder"].largest("pixels", 0), self._engines["decoder"].largest("point_labels", 0)
        )

    def synchronise(self) -> None:
        """Wait for everything enqueued."""
        self._gpu.synchronise()

    def _run(self, graph: str, inputs: Values) -> Values:
        return self._loaded[graph](inputs)

    def _host(self, value: Any) -> np.ndarray:
        return value if isinstance(value, np.ndarray) else self._gpu.get(value)

    def _parts(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Iterator[tuple[Int[np.ndarray, "m"], DeviceArray]]:
        return self._upscaled(prediction, sets, masks)

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"] | DeviceArray) -> tuple[Any, ...]:
        """Image embeddings, in as many arrays as it took calls."""
        if isinstance(pixels, DeviceArray):
            # one picture, which every engine takes
            return (super().encode(pixels),)
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
    """A deserialised engine: named arrays in, arrays on the device out."""

    def __init__(self, engine: Engine, path: Path, gpu: Gpu) -> None:
        """Raises BackendUnavailableError for an engine of another version, ExportError for one that does not load."""
        self._trt = load_library(engine.flavor)
        require_version(engine, self._trt.__version__)
        self._described = engine
        self._log = logger(engine.flavor)
        self._gpu, self._name = gpu, path.name
        # the context holds no reference to what it was made by
        self._library = self._trt.Runtime(self._log)
        self._engine = self._library.deserialize_cuda_engine(path.read_bytes())
        context = None if self._engine is None else self._new_context()
        if context is None:
            raise ExportError(
                f"{path.name}, built by {MODULES[engine.flavor]} {engine.version}, does not load in "
                f"{self._trt.__version__} here ({self._log.told()}): build it again."
            )
        self._call = Call(context, self)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.types = {name: np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        kinds = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if kinds[name] == self._trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if kinds[name] == self._trt.TensorIOMode.OUTPUT]
        # TensorRT-RTX records by itself, and knows which of its kernels are final
        self._records = engine.flavor == "standard" and gpu.driver.captures
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._recorded: dict[tuple[Any, ...], Recording] = {}

    @property
    def gpu(self) -> Gpu:
        """The device that it runs on."""
        return self._gpu

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """One call, enqueued; the arrays given may go when it returns.

        Raises:
            ExportError: an input of a shape or type that the engine does not take, or a call that it refuses.
        """
        given = {name: inputs[name] for name in self.inputs}
        for name, value in given.items():
            require_shape(self._described, name, tuple(value.shape))
        shapes = tuple(tuple(value.shape) for value in given.values())
        self._seen[shapes] += 1
        if shapes in self._recorded:
            return self._recorded[shapes](given)
        if self._records and self._seen[shapes] > 1 and len(self._recorded) < RECORDED:
            recording = Recording(Call(self._new_context(), self), given)
            if recording.graph is None:
                # it does what cannot be recorded, and always will
                self._records = False
            else:
                self._recorded[shapes] = recording
            return recording.answer()
        return self._call({name: self.on_device(name, value) for name, value in given.items()})

    def on_device(self, name: str, value: Any) -> DeviceArray:
        """An input where the engine can read it.

        Raises:
            ExportError: something on the device that has another type.
        """
        if isinstance(value, np.ndarray):
            return self._gpu.put(np.asarray(value, self.types[name]))
        if value.dtype != self.types[name]:
            raise ExportError(f"{self._name} takes {name} as {self.types[name]}, got {value.dtype}.")
        found: DeviceArray = value
        return found

    def refused(self, what: str) -> ExportError:
        """What the library says of something that it did not do."""
        return ExportError(f"{what}: {self._log.told()}.")

    def _new_context(self) -> Any:
        if hasattr(self._trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            return self._engine.create_execution_context(config)
        return self._engine.create_execution_context()


class Call:
    """An execution context: shapes and addresses, and the run."""

    def __init__(self, context: Any, engine: LoadedEngine) -> None:
        self._context, self.engine = context, engine
        # an empty array has no address, and the library wants one
        self._somewhere = engine.gpu.empty((1,), np.uint8)

    def __call__(self, arrays: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Bind arrays, and enqueue a run into new ones."""
        for name, value in arrays.items():
            if not self._context.set_input_shape(name, value.shape):
                raise self.engine.refused(f"the engine does not take {name} of shape {value.shape}")
        outputs = {
            name: self.engine.gpu.empty(tuple(self._context.get_tensor_shape(name)), self.engine.types[name])
            for name in self.engine.outputs
        }
        for name, value in (*arrays.items(), *outputs.items()):
            self._context.set_tensor_address(name, value.address or self._somewhere.address)
        self.run()
        return outputs

    def __del__(self) -> None:
        # the context may not go before what it has enqueued is done; a device that fails has nothing left to wait for
        with suppress(DriverError):
            self.engine.gpu.driver.settle()

    def run(self) -> None:
        """Enqueue a run of what is bound."""
        if not self._context.execute_async_v3(self.engine.gpu.stream.handle):
            raise self.engine.refused("the engine did not run")


class Recording:
    """A run as a CUDA graph, which has its own context and arrays: a graph is of their addresses."""

    def __init__(self, call: Call, given: Mapping[str, Any]) -> None:
        """Runs once, too: a context's first run after its shapes were set does what a graph must not hold."""
        self._call, self._engine = call, call.engine
        gpu = self._engine.gpu
        self._inputs = {name: gpu.empty(tuple(value.shape), self._engine.types[name]) for name, value in given.items()}
        self._fill(given)
        self._outputs = call(self._inputs)
        self.graph: Any = None
        """None where the run cannot be recorded."""
        gpu.driver.begin_capture(gpu.stream)
        try:
            call.run()
        except ExportError:
            with suppress(DriverError):
                gpu.driver.end_capture(gpu.stream)
        else:
            with suppress(DriverError):
                self.graph = gpu.driver.end_capture(gpu.stream)

    def __call__(self, given: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """A call of the same shapes."""
        self._fill(given)
        self._engine.gpu.driver.replay(self.graph, self._engine.gpu.stream)
        return self.answer()

    def answer(self) -> dict[str, DeviceArray]:
        """What the last run gave, as arrays that later ones leave alone."""
        empty = self._engine.gpu.empty
        return {name: self._copy(value, empty(value.shape, value.dtype)) for name, value in self._outputs.items()}

    def _fill(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if isinstance(value, np.ndarray):
                self._engine.gpu.write(self._inputs[name], np.asarray(value, self._engine.types[name]))
            else:
                self._copy(self._engine.on_device(name, value), self._inputs[name])

    def _copy(self, source: DeviceArray, to: DeviceArray) -> DeviceArray:
        if source.nbytes:
            gpu = self._engine.gpu
            gpu.driver.copy_across(to.address, source.address, source.nbytes, gpu.stream)
        return to
