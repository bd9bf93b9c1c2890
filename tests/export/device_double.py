"""Doubles of TensorRT's module, builder and runtime, and of pycuda's driver, for a program on a device.

An engine is its ONNX file and its profile; it runs by a walk, so that halves are halves. Memory is valid while held.
"""

import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
from onnx import TensorProto, helper

from sam_edge.export.walk import FLOATS, Walk


class Memory:
    """pycuda.driver.DeviceAllocation."""

    live: ClassVar["weakref.WeakValueDictionary[int, Memory]"] = weakref.WeakValueDictionary()

    def __init__(self, size: int) -> None:
        self.content = bytearray(b"\xa5" * size)
        self.address = 4096 + 256 * id(self)
        Memory.live[self.address] = self

    def __int__(self) -> int:
        return self.address


def driver(capability: tuple[int, int] = (8, 7)) -> Any:
    """pycuda.driver."""

    def htod(memory: Memory, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= len(memory.content)
        memory.content[: array.nbytes] = array.tobytes()

    def dtoh(array: np.ndarray, memory: Memory) -> None:
        array[...] = np.frombuffer(bytes(memory.content[: array.nbytes]), array.dtype).reshape(array.shape)

    class Stream:
        handle = 77

        def synchronize(self) -> None:
            while pending:
                pending.pop(0)()

    pending: list[Any] = []
    return SimpleNamespace(
        Device=lambda index: SimpleNamespace(compute_capability=lambda: capability),
        Stream=Stream,
        mem_alloc=Memory,
        memcpy_htod=htod,
        memcpy_dtoh=dtoh,
        pending=pending,
    )


def _stored(values: np.ndarray, kind: int) -> bytes:
    if kind == TensorProto.BFLOAT16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(helper.tensor_dtype_to_np_dtype(kind)).tobytes()


def library(cuda: Any, version: str = "10.3.0", spoil: Any = None) -> Any:
    """The module; `spoil` changes what an engine gives, by graph output."""

    class Config:
        def __init__(self) -> None:
            self.profiles: list[Any] = []

        def add_optimization_profile(self, profile: Any) -> None:
            self.profiles.append(profile)

        def create_timing_cache(self, content: bytes) -> bytes:
            return content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
            self.cache = cache

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: memoryview(self.cache + b"t"))

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: list[int], likely: list[int], most: list[int]) -> None:
            self.shapes[name] = [least, likely, most]

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> Any:
            assert flags == 2
            return SimpleNamespace()

        create_builder_config = staticmethod(Config)
        create_optimization_profile = staticmethod(Profile)

        def build_serialized_network(self, network: Any, config: Config) -> bytes:
            (profile,) = config.profiles
            names = {value.name for value in network.model.graph.input}
            assert profile.shapes.keys() == names
            self.log.log("info", "built")
            return json.dumps(profile.shapes).encode() + b"\n" + network.model.SerializeToString()

    class Parser:
        num_errors = 1

        def __init__(self, network: Any, log: Any) -> None:
            self.network = network

        def parse_from_file(self, path: str) -> bool:
            self.network.model = onnx.load(path)
            return all(node.op_type != "Gelu" for node in self.network.model.graph.node)

        def get_error(self, index: int) -> Any:
            return SimpleNamespace(desc=lambda: "No importer registered for op: Gelu")

    class Context:
        def __init__(self, engine: "Engine") -> None:
            self.engine, self.shapes, self.addresses = engine, {}, {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            least, _, most = self.engine.profile[name]
            assert all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
            self.shapes[name] = shape
            return True

        def set_tensor_address(self, name: str, address: int) -> None:
            assert address % 256 == 0
            self.addresses[name] = address

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.results()[name].shape

        def results(self) -> dict[str, np.ndarray]:
            given = {}
            for name, shape in self.shapes.items():
                kind, memory = self.engine.walk.types[name], Memory.live[self.addresses[name]]
                held = np.uint16 if kind == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(kind)
                content = bytes(memory.content[: int(np.prod(shape)) * np.dtype(held).itemsize])
                array = np.frombuffer(content, held).reshape(shape)
                if kind == TensorProto.BFLOAT16:
                    array = (array.astype(np.uint32) << 16).view(np.float32)
                given[name] = array.astype(np.float32) if kind in FLOATS else array
            found = self.engine.walk.run(given)
            return {name: spoil(name, value) if spoil else value for name, value in found.items()}

        def execute_async_v3(self, handle: int) -> bool:
            assert handle == 77

            def work() -> None:
                for name, value in self.results().items():
                    content = _stored(value, self.engine.walk.types[name])
                    memory = Memory.live[self.addresses[name]]
                    assert len(content) <= len(memory.content)
                    memory.content[: len(content)] = content

            cuda.pending.append(work)
            return True

    class Engine:
        def __init__(self, content: bytes) -> None:
            shapes, model = content.split(b"\n", 1)
            self.profile = json.loads(shapes)
            self.walk = Walk(onnx.ModelProto.FromString(model))
            self.names = [*self.walk.inputs, *self.walk.outputs]
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name in self.walk.inputs else "out"

        def get_tensor_dtype(self, name: str) -> int:
            return self.walk.types[name]

        def create_execution_context(self) -> Context:
            return Context(self)

    class Logger:
        WARNING, VERBOSE = "warning", "verbose"

        def __init__(self, severity: str = WARNING) -> None:
            self.severity = severity

    return SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        ILogger=Logger,
        Logger=Logger,
        Builder=Builder,
        OnnxParser=Parser,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=Engine),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=SimpleNamespace(BF16=TensorProto.BFLOAT16),
        nptype=helper.tensor_dtype_to_np_dtype,
    )


def written_ppm(path: Path, image: np.ndarray) -> Path:
    """A binary .ppm."""
    path.write_bytes(b"P6\n%d %d\n255\n" % image.shape[1::-1] + image.tobytes())
    return path
