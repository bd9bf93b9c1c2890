"""CUDA's driver through either of its Python packages: cuda.bindings, or pycuda where a toolkit has built it.

Both are brought to the few verbs that kernels and engines need; everything is asynchronous on a stream but
`synchronise`. Both use the device's primary context, which other libraries share.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from sam_edge.errors import BackendUnavailableError, SamEdgeError


class DriverError(SamEdgeError):
    """A call that CUDA's driver refused."""


@dataclass(frozen=True)
class Stream:
    """A queue of work."""

    handle: int
    own: Any
    """The package's object, which ends the stream once nobody has it any more."""


@runtime_checkable
class Driver(Protocol):
    """What is asked of CUDA's driver."""

    target: str
    """Compute capability of the device, as `sm89`."""
    captures: bool
    """Whether streams can be captured into graphs."""

    def stream(self) -> Stream:
        """A new stream that does not wait for the default one."""
        ...

    def allocate(self, size: int) -> tuple[int, Any]:
        """Address of `size` bytes of the device's memory, aligned to 256, and what gives them back when it goes."""
        ...

    def pinned(self, size: int) -> UInt8[np.ndarray, "size"]:
        """Memory of the host that stays where it is, so that the device can copy by itself."""
        ...

    def copy_in(self, address: int, values: np.ndarray, stream: Stream) -> None:
        """From pinned memory to the device."""
        ...

    def copy_out(self, values: np.ndarray, address: int, stream: Stream) -> None:
        """From the device to pinned memory."""
        ...

    def copy_across(self, to: int, address: int, size: int, stream: Stream) -> None:
        """Within the device."""
        ...

    def fill_zeros(self, address: int, size: int, stream: Stream) -> None:
        """Zeros to the device's memory."""
        ...

    def function(self, cubin: bytes, name: str) -> Any:
        """A kernel of a module, which it keeps loaded."""
        ...

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        stream: Stream,
        arguments: list[np.generic],
    ) -> None:
        """A kernel, given numbers and addresses (uint64) by value."""
        ...

    def synchronise(self, stream: Stream) -> None:
        """Wait for all that was enqueued."""
        ...

    def settle(self) -> None:
        """Wait for all streams, those that are gone already, too."""
        ...

    def event(self, stream: Stream) -> Any:
        """A mark behind all that was enqueued."""
        ...

    def passed(self, event: Any) -> bool:
        """Whether the work before a mark is done."""
        ...

    def milliseconds(self, first: Any, second: Any) -> float:
        """Time between two marks that have been passed."""
        ...

    def begin_capture(self, stream: Stream) -> None:
        """From here on work is recorded, not done."""
        ...

    def end_capture(self, stream: Stream) -> Any:
        """What was recorded, as a graph that can be replayed."""
        ...

    def replay(self, graph: Any, stream: Stream) -> None:
        """Enqueue a graph."""
        ...


def open_driver() -> Driver:
    """cuda.bindings' driver, or pycuda's.

    Raises:
        BackendUnavailableError: neither is installed, or there is no device.
    """
    try:
        from cuda.bindings import driver
    except ImportError:
        try:
            import pycuda.autoprimaryctx  # noqa: F401 - makes the context
            from pycuda import driver as pycuda_driver
        except ImportError as error:
            raise BackendUnavailableError(
                "CUDA needs cuda.bindings or pycuda: pip install 'cuda-bindings[all]', or 'sam-edge[pycuda]' where a "
                "toolkit is."
            ) from error
        except Exception as error:
            # its own errors are classes of a module that may not have been loaded
            raise BackendUnavailableError(f"pycuda cannot start here: {error}.") from error
        return PycudaDriver(pycuda_driver)
    return BindingsDriver(driver)


class BindingsDriver:
    """Through cuda.bindings.driver, whose functions give (error, value)."""

    captures = True

    def __init__(self, cuda: Any) -> None:
        """Raises BackendUnavailableError where there is no driver or no device."""
        self._cuda = cuda
        try:
            self._call("cuInit", 0)
            device = self._call("cuDeviceGet", 0)
            # other libraries of this process use the same, and it must outlive what was allocated in it
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
            self._call("cuCtxSetCurrent", self._context)
            attributes = cuda.CUdevice_attribute
            major, minor = (
                self._call(
                    "cuDeviceGetAttribute",
                    getattr(attributes, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"),
                    device,
                )
                for part in ("MAJOR", "MINOR")
            )
        except (DriverError, RuntimeError) as error:
            raise BackendUnavailableError(
                f"there is no CUDA device here ({str(error).rstrip('.')}): use --runtime onnxruntime."
            ) from error
        self.target = f"sm{major}{minor}"
        self._modules: dict[bytes, Any] = {}

    def stream(self) -> Stream:
        made = self._call("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING))
        return Stream(int(made), _Owner(made, lambda: self._release("cuStreamDestroy", made)))

    def allocate(self, size: int) -> tuple[int, Any]:
        address = self._call("cuMemAlloc", size)
        return int(address), _Owner(address, lambda: self._release_memory("cuMemFree", address))

    def pinned(self, size: int) -> UInt8[np.ndarray, "size"]:
        address = self._call("cuMemHostAlloc", size, 0)
        owner = _Pinned(int(address), size, lambda: self._release_memory("cuMemFreeHost", address))
        return np.asarray(owner)

    def copy_in(self, address: int, values: np.ndarray, stream: Stream) -> None:
        self._call("cuMemcpyHtoDAsync", address, values.ctypes.data, values.nbytes, stream.handle)

    def copy_out(self, values: np.ndarray, address: int, stream: Stream) -> None:
        self._call("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, stream.handle)

    def copy_across(self, to: int, address: int, size: int, stream: Stream) -> None:
        self._call("cuMemcpyDtoDAsync", to, address, size, stream.handle)

    def fill_zeros(self, address: int, size: int, stream: Stream) -> None:
        self._call("cuMemsetD8Async", address, 0, size, stream.handle)

    def function(self, cubin: bytes, name: str) -> Any:
        if cubin not in self._modules:
            self._modules[cubin] = self._call("cuModuleLoadData", cubin)
        return self._call("cuModuleGetFunction", self._modules[cubin], name.encode())

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        stream: Stream,
        arguments: list[np.generic],
    ) -> None:
        # the driver copies what the pointers point at before it returns
        values = [np.array(argument) for argument in arguments]
        pointers = np.array([value.ctypes.data for value in values], np.uint64)
        self._call("cuLaunchKernel", function, *grid, block, 1, 1, shared_bytes, stream.handle, pointers.ctypes.data, 0)

    def synchronise(self, stream: Stream) -> None:
        self._call("cuStreamSynchronize", stream.handle)

    def settle(self) -> None:
        self._call("cuCtxSynchronize")

    def event(self, stream: Stream) -> Any:
        event = self._call("cuEventCreate", 0)
        self._call("cuEventRecord", event, stream.handle)
        return _Owner(event, lambda: self._release("cuEventDestroy", event))

    def passed(self, event: Any) -> bool:
        (result, *_) = self._cuda.cuEventQuery(event.value)
        if result == self._cuda.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._check("cuEventQuery", result)
        return True

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(self._call("cuEventElapsedTime", first.value, second.value))

    def begin_capture(self, stream: Stream) -> None:
        # of this thread alone: what others do on streams of theirs is no part of it, and is not refused meanwhile
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream.handle, mode)

    def end_capture(self, stream: Stream) -> Any:
        graph = self._call("cuStreamEndCapture", stream.handle)
        try:
            instance = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return _Owner(instance, lambda: self._release("cuGraphExecDestroy", instance))

    def replay(self, graph: Any, stream: Stream) -> None:
        self._call("cuGraphLaunch", graph.value, stream.handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        result, *values = getattr(self._cuda, name)(*arguments)
        self._check(name, result)
        return values[0] if values else None

    def _check(self, name: str, result: Any) -> None:
        if int(result):
            raise DriverError(f"{name} fails: {getattr(result, 'name', result)}.")

    def _release_memory(self, name: str, address: Any) -> None:
        # what still uses it comes first; this is at a program's end, for memory goes from work to work until then, and
        # whether the driver is still there does not matter any more
        self._cuda.cuCtxSynchronize()
        self._release(name, address)

    def _release(self, name: str, handle: Any) -> None:
        # at the interpreter's end the driver may be gone already, and with it all that was its
        getattr(self._cuda, name)(handle)


class PycudaDriver:
    """Through pycuda.driver."""

    captures = False
    """Only its newest versions can, and cuda.bindings is there for who wants it."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        major, minor = cuda.Context.get_device().compute_capability()
        self.target = f"sm{major}{minor}"
        self._modules: dict[bytes, Any] = {}

    def stream(self) -> Stream:
        stream = self._cuda.Stream()
        return Stream(int(stream.handle), stream)

    def allocate(self, size: int) -> tuple[int, Any]:
        memory = self._cuda.mem_alloc(size)
        return int(memory), _Owner(memory, lambda: self._release_memory(memory))

    def pinned(self, size: int) -> UInt8[np.ndarray, "size"]:
        values = self._cuda.pagelocked_empty((size,), np.uint8)
        owner = _Pinned(values.ctypes.data, size, lambda: self._release_memory(values.base))
        return np.asarray(owner)

    def copy_in(self, address: int, values: np.ndarray, stream: Stream) -> None:
        self._cuda.memcpy_htod_async(address, values, stream.own)

    def copy_out(self, values: np.ndarray, address: int, stream: Stream) -> None:
        self._cuda.memcpy_dtoh_async(values, address, stream.own)

    def copy_across(self, to: int, address: int, size: int, stream: Stream) -> None:
        self._cuda.memcpy_dtod_async(to, address, size, stream.own)

    def fill_zeros(self, address: int, size: int, stream: Stream) -> None:
        self._cuda.memset_d8_async(address, 0, size, stream.own)

    def function(self, cubin: bytes, name: str) -> Any:
        if cubin not in self._modules:
            self._modules[cubin] = self._cuda.module_from_buffer(cubin)
        return self._modules[cubin].get_function(name)

    def launch(
        self,
        function: Any,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        stream: Stream,
        arguments: list[np.generic],
    ) -> None:
        function(*arguments, grid=grid, block=(block, 1, 1), shared=shared_bytes, stream=stream.own)

    def synchronise(self, stream: Stream) -> None:
        stream.own.synchronize()

    def settle(self) -> None:
        self._cuda.Context.synchronize()

    def event(self, stream: Stream) -> Any:
        return self._cuda.Event().record(stream.own)

    def passed(self, event: Any) -> bool:
        return bool(event.query())

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(second.time_since(first))

    def begin_capture(self, stream: Stream) -> None:
        raise DriverError("pycuda does not capture graphs here.")

    end_capture = begin_capture

    def _release_memory(self, memory: Any) -> None:
        self.settle()
        memory.free()

    def replay(self, graph: Any, stream: Stream) -> None:
        raise DriverError("pycuda does not replay graphs here.")


class _Owner:
    """Gives something back when it goes."""

    def __init__(self, value: Any, release: Any) -> None:
        self.value, self._release = value, release

    def __del__(self) -> None:
        self._release()


class _Pinned:
    """Memory at an address as NumPy's array interface; the arrays made of it keep it."""

    def __init__(self, address: int, size: int, release: Any) -> None:
        self._release = release
        self.__array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        self._release()
