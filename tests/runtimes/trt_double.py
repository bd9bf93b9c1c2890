"""A double of TensorRT's module on a double of a CUDA device: engines are ONNX files.

It is as strict as the real one where `sam_edge.runtimes.tensorrt_runtime` could go wrong: shapes must lie in the
engine's profile, addresses be aligned and of memory that is long enough until the run has happened, a run be recorded
only behind another of its shapes, and a context that was recorded keep its shapes and live. A breach is a `Fault`.
"""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from weakref import ref

import numpy as np
import onnxruntime as ort

from sam_edge.runtimes.engines import Shapes
from tests.cuda_double import Fault, Machine, Part, Work

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
BROKEN = b"broken"
"""An engine of another version."""


def engine_bytes(onnx: bytes, shapes: Shapes) -> bytes:
    """An engine's file: its profile, and its graph."""
    return json.dumps(shapes).encode() + b"\n" + onnx


class Context:
    """IExecutionContext."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._warm = self._recorded = False
        # goes when the context does; references to what the garbage collector finds are cut before that
        self._life = np.zeros(0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """False for a shape outside of the profile."""
        if self._recorded and shape != self._shapes[name]:
            raise Fault("the shapes of a context are changed whose run is recorded")
        least, most = (self._engine.shapes[name][end] for end in ("min", "max"))
        fits = len(shape) == len(most) and all(
            low <= s <= high for low, s, high in zip(least, shape, most, strict=True)
        )
        if fits:
            self._warm = self._warm and self._shapes.get(name) == shape
            self._shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Where a tensor lies."""
        if address % 256:
            raise Fault(f"{name} lies at {address:#x}, which is not aligned to 256 bytes")
        self._engine.machine.check(Part(address, 1), "device")
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output, by the inputs' shapes."""
        free: dict[str, int] = {}
        for given in self._engine.session.get_inputs():
            sizes = zip(given.shape, self._shapes[given.name], strict=True)
            free |= {name: size for name, size in sizes if isinstance(name, str)}
        (output,) = (found for found in self._engine.session.get_outputs() if found.name == name)
        return tuple(eval(str(size), {"__builtins__": {}}, free) for size in output.shape)

    def execute_async_v3(self, handle: int) -> bool:
        """Enqueue a run: what is bound must live until it has happened."""
        engine, machine = self._engine, self._engine.machine
        recording = machine.stream_of(handle).recorded is not None
        if recording and engine.refuses_to_record:
            return False
        if recording and not self._warm:
            raise Fault("a run is recorded without one before it, since its shapes were set")
        self._warm, self._recorded = True, self._recorded or recording
        outputs = [output.name for output in engine.session.get_outputs()]
        shapes = self._shapes | {name: self.get_tensor_shape(name) for name in outputs}
        parts = {
            name: Part(self._addresses[name], int(np.prod(shape)) * np.dtype(engine.types[name]).itemsize)
            for name, shape in shapes.items()
        }
        alive = ref(self._life)

        def run() -> None:
            if alive() is None:
                raise Fault("a context ran that is gone")
            engine.calls.append({name: shape for name, shape in shapes.items() if name not in outputs})
            given = {
                name: machine.bytes_of(parts[name]).view(engine.types[name]).reshape(shape).copy()
                for name, shape in shapes.items()
                if name not in outputs
            }
            for name, value in zip(outputs, engine.session.run(outputs, given), strict=True):
                assert value.shape == shapes[name]
                assert value.dtype == engine.types[name]
                machine.bytes_of(parts[name])[...] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

        reads = tuple(part for name, part in parts.items() if name not in outputs)
        machine.enqueue(handle, Work("engine", run, reads, tuple(parts[name] for name in outputs)))
        return True


class Engine:
    """ICudaEngine."""

    def __init__(self, content: bytes, machine: Machine, calls: list[dict[str, tuple[int, ...]]]) -> None:
        self.machine, self.refuses_to_record = machine, False
        shapes, onnx = content.split(b"\n", 1)
        self.shapes: Shapes = json.loads(shapes)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.calls = calls
        self.strategies: list[Any] = []
        """Of the contexts made, how each is to record itself."""
        self._names = [value.name for value in (*self.session.get_inputs(), *self.session.get_outputs())]
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        self.types = {value.name: TYPES[value.type] for value in values}
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        """Of an input or output."""
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        """Which of the two."""
        return "in" if name in {value.name for value in self.session.get_inputs()} else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        """As the library names types."""
        return self.types[name]

    def create_runtime_config(self) -> Any:
        """TensorRT-RTX's options of a context."""
        return SimpleNamespace(cuda_graph_strategy="none")

    def create_execution_context(self, config: Any = None) -> Context:
        """What runs it."""
        self.strategies.append(None if config is None else config.cuda_graph_strategy)
        return Context(self)


def library(machine: Machine, calls: list[dict[str, tuple[int, ...]]], flavor: str = "rtx") -> Any:
    """The module; `calls` hears of the input shapes of every run of an engine."""
    engines: list[Engine] = []

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            if content == BROKEN:
                return None
            engines.append(Engine(content, machine, calls))
            return engines[-1]

    own = {"CudaGraphStrategy": SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")} if flavor == "rtx" else {}
    return SimpleNamespace(
        Runtime=Runtime,
        engines=engines,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda kind: kind,
        __version__="0.double",
        **own,
    )


def sizes(calls: list[Mapping[str, tuple[int, ...]]], name: str, axis: int) -> list[int]:
    """The sizes of an axis of an input, of those calls that had it."""
    return [call[name][axis] for call in calls if name in call]
