"""Doubles of TensorRT's module and of pycuda's arrays: engines are ONNX files, a device's memory is NumPy's.

They are as strict as the real ones where `sam_edge.runtimes.tensorrt_runtime` could go wrong: an address is valid while
its array lives, fresh memory holds garbage, an empty array has no address, and shapes must lie in the engine's profile.
"""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort

from sam_edge.runtimes.engines import Shapes

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
BROKEN = b"broken"
"""An engine of another version."""


def engine_bytes(onnx: bytes, shapes: Shapes) -> bytes:
    """An engine's file: its profile, and its graph."""
    return json.dumps(shapes).encode() + b"\n" + onnx


class Array:
    """pycuda.gpuarray.GPUArray, as far as it is used."""

    _live: ClassVar["WeakValueDictionary[int, Array]"] = WeakValueDictionary()

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype
        # pycuda allocates nothing for nothing
        self.gpudata = 4096 + 256 * id(self) if values.size else None
        if values.size:
            Array._live[self.gpudata] = self

    def get(self) -> np.ndarray:
        """A copy in host memory."""
        return self.values.copy()

    @classmethod
    def at(cls, address: int) -> "Array":
        """The array at an address; KeyError where its memory was given back."""
        return cls._live[address]


def to_gpu(values: np.ndarray) -> Array:
    """A copy on the device."""
    assert values.flags.c_contiguous
    return Array(values.copy())


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory that holds whatever lay there."""
    assert type(shape) is tuple
    garbage = np.full(shape, -77, dtype)
    return Array(garbage)


class Stream:
    """pycuda.driver.Stream, on which nothing has happened before it is synchronised."""

    by_handle: ClassVar["WeakValueDictionary[int, Stream]"] = WeakValueDictionary()

    def __init__(self) -> None:
        self.handle = 256 * id(self)
        self.pending: list[Any] = []
        Stream.by_handle[self.handle] = self

    def synchronize(self) -> None:
        """Do what was enqueued."""
        while self.pending:
            self.pending.pop(0)()


class Context:
    """IExecutionContext."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """False for a shape outside of the profile."""
        least, most = (self._engine.shapes[name][end] for end in ("min", "max"))
        fits = len(shape) == len(most) and all(
            low <= s <= high for low, s, high in zip(least, shape, most, strict=True)
        )
        if fits:
            self._shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> None:
        """Where a tensor lies."""
        self._addresses[name] = address

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
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        self._engine.calls.append(shapes)

        def run() -> None:
            given = {}
            for name, shape in shapes.items():
                array = Array.at(addresses[name])
                assert array.shape == shape
                assert array.dtype == self._engine.types[name]
                given[name] = array.values
            outputs = [output.name for output in self._engine.session.get_outputs()]
            for name, value in zip(outputs, self._engine.session.run(outputs, given), strict=True):
                array = Array.at(addresses[name])
                assert array.shape == value.shape
                assert array.dtype == value.dtype
                array.values[...] = value

        Stream.by_handle[handle].pending.append(run)
        return True


class Engine:
    """ICudaEngine."""

    def __init__(self, content: bytes, calls: list[dict[str, tuple[int, ...]]]) -> None:
        shapes, onnx = content.split(b"\n", 1)
        self.shapes: Shapes = json.loads(shapes)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.calls = calls
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

    def create_execution_context(self) -> Context:
        """What runs it."""
        return Context(self)


def library(calls: list[dict[str, tuple[int, ...]]]) -> Any:
    """The module; `calls` hears of the input shapes of every call of an engine."""

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            return None if content == BROKEN else Engine(content, calls)

    return SimpleNamespace(
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda kind: kind,
        __version__="0.double",
    )


def pycuda() -> tuple[Any, Any]:
    """pycuda's driver and its arrays."""
    return SimpleNamespace(Stream=Stream), SimpleNamespace(to_gpu=to_gpu, empty=empty)


def sizes(calls: list[Mapping[str, tuple[int, ...]]], name: str, axis: int) -> list[int]:
    """The sizes of an axis of an input, of those calls that had it."""
    return [call[name][axis] for call in calls if name in call]
