"""A double of a CUDA device: its memory, streams, events and graphs, seen as cuda.bindings or as pycuda.

Strict where programs go wrong. Nothing that is enqueued happens before its stream is waited for. Memory is checked when
work is enqueued and again when it happens: it must be allocated, not given back, long enough; what a copy reads of the
host must be pinned and must not change meanwhile; what one stream uses no other may touch before it was waited for;
fresh memory, and the target of a copy that has not happened, hold garbage. Kernels run in emulation. A breach is a
`Fault`.
"""

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np

from sam_edge.kernels.compiler import SOURCES
from sam_edge.kernels.gpu import CSRC
from tests.kernels.emulated import Memory, code, library, run

GARBAGE = 0xCD
CUBIN = b"EMULATED "
"""What begins a double's machine code; the source's label follows."""


class Fault(AssertionError):
    """What is undefined, or an error, on a real device."""


@dataclass(frozen=True)
class Part:
    """Some bytes of an allocation."""

    address: int
    size: int

    def meets(self, other: "Part") -> bool:
        """Whether they share a byte."""
        return self.address < other.address + other.size and other.address < self.address + self.size


@dataclass
class Block:
    """An allocation. It is kept when given back, so that its address is nobody else's."""

    part: Part
    kind: str
    memory: Memory
    freed: bool = False


@dataclass(frozen=True)
class Work:
    """Something that a stream will do."""

    name: str
    do: Callable[[], None]
    reads: tuple[Part, ...] = ()
    writes: tuple[Part, ...] = ()
    seen: tuple[bytes, ...] = ()
    """Digests of the pinned memory that it reads, from when it was enqueued."""


@dataclass
class Stream:
    """What was enqueued, and how much of all that ever was has happened."""

    handle: int
    pending: list[Work] = field(default_factory=list)
    enqueued: int = 0
    done: int = 0
    recorded: list[Work] | None = None
    destroyed: bool = False


class Machine:
    """The device."""

    def __init__(self, major: int = 8, minor: int = 9) -> None:
        self.capability = major, minor
        self.blocks: list[Block] = []
        self.streams: dict[int, Stream] = {}
        self.over = False
        """Whether nothing counts any more: a fault was seen, and what it left behind is let go."""
        self.log: list[str] = []
        """Names of all that happened, in order."""

    def allocate(self, size: int, kind: str) -> int:
        """An address, aligned to 256."""
        self._not_recording(f"an allocation of {kind} memory")
        if size <= 0:
            raise Fault(f"{size} bytes cannot be allocated")
        memory = Memory(size)
        memory.bytes_at(memory.address, size)[...] = GARBAGE
        self.blocks.append(Block(Part(memory.address, size), kind, memory))
        return memory.address

    def free(self, address: int, kind: str) -> None:
        """Give back an allocation."""
        if self.over:
            return
        block = next((b for b in self.blocks if b.part.address == address and b.kind == kind), None)
        if block is None or block.freed:
            raise Fault(f"{kind} memory at {address:#x} is given back twice, or is none")
        for stream in self.streams.values():
            for work in stream.pending:
                if any(part.meets(block.part) for part in (*work.reads, *work.writes)):
                    raise Fault(f"{kind} memory is given back while {work.name} has not used it yet")
        block.freed = True

    def check(self, part: Part, kind: str | None = None) -> Block:
        """The allocation that holds a part."""
        block = self.block_of(part.address)
        if block is None:
            raise Fault(f"{part.address:#x} is in no {kind or ''} allocation")
        if block.freed:
            raise Fault(f"{block.kind} memory at {part.address:#x} was given back")
        if kind is not None and block.kind != kind:
            raise Fault(f"{part.address:#x} is {block.kind} memory, not {kind}")
        if part.address + part.size > block.part.address + block.part.size:
            raise Fault(f"{part.size} bytes at {part.address:#x} are more than the allocation has")
        return block

    def block_of(self, address: int) -> Block | None:
        """The allocation that an address lies in, given back or not."""
        whole = (b for b in self.blocks if b.part.address <= address < b.part.address + b.part.size)
        return next(whole, None)

    def bytes_of(self, part: Part) -> np.ndarray:
        """The memory itself."""
        return self.check(part).memory.bytes_at(part.address, part.size)

    def stream(self) -> Stream:
        """A new one."""
        stream = Stream(0x1000 + 16 * len(self.streams))
        self.streams[stream.handle] = stream
        return stream

    def stream_of(self, handle: int) -> Stream:
        """By its handle."""
        stream = self.streams.get(int(handle))
        if stream is None or stream.destroyed:
            raise Fault(f"there is no stream {int(handle):#x}")
        return stream

    def destroy(self, handle: int) -> None:
        """The end of a stream."""
        if not self.over:
            self.stream_of(handle).destroyed = True

    def enqueue(self, handle: int, work: Work) -> None:
        """To be done when its stream is waited for, or recorded."""
        stream = self.stream_of(handle)
        for part in (*work.reads, *work.writes):
            self.check(part)
        if stream.recorded is not None:
            stream.recorded.append(work)
            return
        for other in self.streams.values():
            for theirs in other.pending if other is not stream else ():
                mine = (*work.reads, *work.writes)
                if any(a.meets(b) for a in mine for b in theirs.writes) or any(
                    a.meets(b) for a in work.writes for b in theirs.reads
                ):
                    raise Fault(f"{work.name} uses what {theirs.name} uses on another stream, which was not waited for")
        stream.pending.append(replace(work, seen=tuple(self._digests(work))))
        stream.enqueued += 1

    def synchronise(self, handle: int) -> None:
        """Do what was enqueued."""
        stream = self.stream_of(handle)
        if stream.recorded is not None:
            raise Fault("a stream is waited for while it records")
        self._finish(stream)

    def settle(self) -> None:
        """Do all that was enqueued anywhere; a stream's end waits for nothing and loses nothing."""
        for stream in self.streams.values():
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        while stream.pending and not self.over:
            work = stream.pending.pop(0)
            for part in (*work.reads, *work.writes):
                self.check(part)
            if work.seen != tuple(self._digests(work)):
                raise Fault(f"pinned memory was changed before {work.name} had read it")
            work.do()
            stream.done += 1
            self.log.append(work.name)

    def _digests(self, work: Work) -> Iterable[bytes]:
        for part in work.reads:
            if self.check(part).kind == "pinned":
                yield sha256(self.bytes_of(part)).digest()

    def _not_recording(self, what: str) -> None:
        if any(stream.recorded is not None for stream in self.streams.values()):
            raise Fault(f"{what} while a stream records")

    # what both packages offer

    def copy(self, name: str, to: Part, source: Part, handle: int, kinds: tuple[str, str]) -> None:
        """From one kind of memory to another."""
        self.check(to, kinds[0])
        self.check(source, kinds[1])
        if kinds[0] == "pinned":
            self.bytes_of(to)[...] = GARBAGE

        def do() -> None:
            self.bytes_of(to)[...] = self.bytes_of(source)

        self.enqueue(handle, Work(name, do, (source,), (to,)))

    def fill(self, to: Part, value: int, handle: int) -> None:
        """Bytes of the device's memory."""
        self.check(to, "device")

        def do() -> None:
            self.bytes_of(to)[...] = value

        self.enqueue(handle, Work("fill", do, (), (to,)))

    def launch(
        self,
        source: bytes,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        handle: int,
        arguments: list[np.generic],
    ) -> None:
        """A kernel in emulation. Whatever argument is an address is taken to be read and written, all of its array."""
        if shared_bytes > 48 << 10:
            raise Fault(f"{kernel} asks for {shared_bytes} bytes of shared memory: 49152 are had without more")
        (found,) = (one for one in SOURCES if CUBIN + one.label.encode() == source)
        loaded = library(code(found), CSRC)
        used = []
        for argument in arguments:
            whole = self.block_of(int(argument)) if argument.nbytes == 8 and argument.dtype.kind == "u" else None
            if whole is not None:
                first = int(argument)
                used.append(Part(first, whole.part.address + whole.part.size - first))

        def do() -> None:
            run(loaded, kernel, grid, block, arguments, shared_bytes)

        self.enqueue(handle, Work(kernel, do, tuple(used), tuple(used)))

    def begin_recording(self, handle: int) -> None:
        """From here on a stream's work is recorded."""
        stream = self.stream_of(handle)
        if stream.recorded is not None:
            raise Fault("a stream that records begins to record")
        stream.recorded = []

    def end_recording(self, handle: int) -> list[Work]:
        """What was recorded."""
        stream = self.stream_of(handle)
        if stream.recorded is None:
            raise Fault("a stream that does not record ends recording")
        recorded, stream.recorded = stream.recorded, None
        return recorded

    def replay(self, recorded: list[Work], handle: int) -> None:
        """Enqueue what was recorded, whose memory must still be there."""
        for work in recorded:
            self.enqueue(handle, work)


@dataclass
class Event:
    """A mark in a stream."""

    stream: Stream | None = None
    place: int = 0

    def record(self, stream: Stream) -> None:
        """Behind all that was enqueued."""
        self.stream, self.place = stream, stream.enqueued

    def passed(self) -> bool:
        """Whether all before it has happened."""
        return self.stream is None or self.stream.done >= self.place


class Handle(int):
    """A pointer of the driver's, as cuda.bindings gives them: a class that int() takes."""


@dataclass(eq=False)
class Owned:
    """Something of the driver's behind a pointer."""

    content: Any
    destroyed: bool = False

    def __int__(self) -> int:
        return id(self)


class Bindings:
    """cuda.bindings.driver: every function gives a tuple that begins with 0, or an error's number."""

    CUstream_flags = SimpleNamespace(CU_STREAM_DEFAULT=0, CU_STREAM_NON_BLOCKING=1)
    CUresult = SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_NOT_READY=600)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.errors: dict[str, int] = {}
        """Numbers that functions are to fail with."""
        self._current = False

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cu") and name in object.__getattribute__(self, "errors"):
            return lambda *given: (self.errors[name],)
        return found

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, Any]:
        return 0, Handle(ordinal)

    def cuDevicePrimaryCtxRetain(self, dev: int) -> tuple[int, Any]:
        return 0, Handle(7)

    def cuCtxSetCurrent(self, ctx: int) -> tuple[int]:
        self._current = True
        return (0,)

    def cuCtxSynchronize(self) -> tuple[int]:
        self.machine.settle()
        return (0,)

    def cuDeviceGetAttribute(self, attrib: int, dev: int) -> tuple[int, int]:
        return 0, self.machine.capability[attrib - 75]

    def cuStreamCreate(self, Flags: int) -> tuple[int, Any]:
        if not self._current:
            raise Fault("a stream without a context")
        return 0, Handle(self.machine.stream().handle)

    def cuStreamDestroy(self, hStream: int) -> tuple[int]:
        self.machine.destroy(hStream)
        return (0,)

    def cuStreamSynchronize(self, hStream: int) -> tuple[int]:
        self.machine.synchronise(hStream)
        return (0,)

    def cuMemAlloc(self, bytesize: int) -> tuple[int, Any]:
        return 0, Handle(self.machine.allocate(bytesize, "device"))

    def cuMemFree(self, dptr: int) -> tuple[int]:
        self.machine.free(dptr, "device")
        return (0,)

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> tuple[int, Any]:
        return 0, Handle(self.machine.allocate(bytesize, "pinned"))

    def cuMemFreeHost(self, p: int) -> tuple[int]:
        self.machine.free(p, "pinned")
        return (0,)

    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: int) -> tuple[int]:
        to, source = Part(int(dstDevice), ByteCount), Part(int(srcHost), ByteCount)
        self.machine.copy("copy in", to, source, hStream, ("device", "pinned"))
        return (0,)

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: int) -> tuple[int]:
        to, source = Part(int(dstHost), ByteCount), Part(int(srcDevice), ByteCount)
        self.machine.copy("copy out", to, source, hStream, ("pinned", "device"))
        return (0,)

    def cuMemcpyDtoDAsync(self, dstDevice: int, srcDevice: int, ByteCount: int, hStream: int) -> tuple[int]:
        to, source = Part(int(dstDevice), ByteCount), Part(int(srcDevice), ByteCount)
        self.machine.copy("copy across", to, source, hStream, ("device", "device"))
        return (0,)

    def cuMemsetD8Async(self, dstDevice: int, uc: int, N: int, hStream: int) -> tuple[int]:
        self.machine.fill(Part(int(dstDevice), N), uc, hStream)
        return (0,)

    def cuModuleLoadData(self, image: bytes) -> tuple[int, Any]:
        return 0, Owned(image)

    def cuModuleGetFunction(self, hmod: Owned, name: bytes) -> tuple[int, Any]:
        return 0, Owned((hmod.content, name.decode()))

    def cuLaunchKernel(
        self,
        f: Owned,
        gridDimX: int,
        gridDimY: int,
        gridDimZ: int,
        blockDimX: int,
        blockDimY: int,
        blockDimZ: int,
        sharedMemBytes: int,
        hStream: int,
        kernelParams: int,
        extra: int,
    ) -> tuple[int]:
        source, kernel = f.content
        (found,) = (one for one in SOURCES if CUBIN + one.label.encode() == source)
        loaded = library(code(found), CSRC)
        arguments: list[np.generic] = []
        pointers = ctypes.cast(int(kernelParams), ctypes.POINTER(ctypes.c_void_p))
        # what they point at is read now: the caller may let go of it
        while (size := loaded.emulation_parameter(kernel.encode(), len(arguments))) >= 0:
            content = ctypes.string_at(pointers[len(arguments)], size)
            arguments.append(np.frombuffer(content, {4: "u4", 8: "u8"}[size])[0])
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        self.machine.launch(source, kernel, grid, block, sharedMemBytes, hStream, arguments)
        return (0,)

    def cuEventCreate(self, Flags: int) -> tuple[int, Any]:
        return 0, Owned(Event())

    def cuEventRecord(self, hEvent: Owned, hStream: int) -> tuple[int]:
        self._alive(hEvent).record(self.machine.stream_of(hStream))
        return (0,)

    def cuEventQuery(self, hEvent: Owned) -> tuple[int]:
        return (0 if self._alive(hEvent).passed() else 600,)

    def cuEventElapsedTime(self, hStart: Owned, hEnd: Owned) -> tuple[int, float]:
        if not (self._alive(hStart).passed() and self._alive(hEnd).passed()):
            return 600, 0.0
        return 0, 1.5

    def cuEventDestroy(self, hEvent: Owned) -> tuple[int]:
        self._alive(hEvent)
        hEvent.destroyed = True
        return (0,)

    def cuStreamBeginCapture(self, hStream: int, mode: int) -> tuple[int]:
        self.machine.begin_recording(hStream)
        return (0,)

    def cuStreamEndCapture(self, hStream: int) -> tuple[int, Any]:
        return 0, Owned(self.machine.end_recording(hStream))

    def cuGraphInstantiate(self, hGraph: Owned, flags: int) -> tuple[int, Any]:
        return 0, Owned(list(self._alive(hGraph)))

    def cuGraphDestroy(self, hGraph: Owned) -> tuple[int]:
        self._alive(hGraph)
        hGraph.destroyed = True
        return (0,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, hGraphExec: Owned, hStream: int) -> tuple[int]:
        self.machine.replay(self._alive(hGraphExec), hStream)
        return (0,)

    def _alive(self, handle: Owned) -> Any:
        if handle.destroyed:
            raise Fault("a handle is used that was destroyed")
        return handle.content


def pycuda(machine: Machine) -> Any:
    """pycuda.driver, as far as it is used."""

    class Allocation:
        def __init__(self, size: int) -> None:
            self._address = machine.allocate(size, "device")

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            machine.free(self._address, "device")

    class Owner:
        def __init__(self, size: int) -> None:
            self.address = machine.allocate(size, "pinned")
            self.__array_interface__ = {
                "data": (self.address, False),
                "shape": (size,),
                "typestr": "|u1",
                "version": 3,
            }

        def free(self) -> None:
            machine.free(self.address, "pinned")

    class PycudaStream:
        def __init__(self) -> None:
            self.handle = machine.stream().handle

        def synchronize(self) -> None:
            machine.synchronise(self.handle)

    class PycudaEvent:
        def __init__(self) -> None:
            self._event = Event()

        def record(self, stream: PycudaStream) -> "PycudaEvent":
            self._event.record(machine.stream_of(stream.handle))
            return self

        def query(self) -> bool:
            return self._event.passed()

        def time_since(self, other: "PycudaEvent") -> float:
            assert self.query()
            assert other.query()
            return 1.5

    class Function:
        def __init__(self, source: bytes, name: str) -> None:
            self._source, self._name = source, name

        def __call__(self, *arguments: np.generic, grid: Any, block: Any, shared: int, stream: PycudaStream) -> None:
            # plain numbers have no size, and are refused
            assert all(isinstance(argument, np.number) for argument in arguments)
            machine.launch(self._source, self._name, grid, block, shared, stream.handle, list(arguments))

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        (size,) = shape
        assert dtype == np.uint8
        return np.asarray(Owner(size))

    def htod(dest: int, src: np.ndarray, stream: PycudaStream) -> None:
        size = src.nbytes
        pinned = Part(src.ctypes.data, size)
        machine.copy("copy in", Part(int(dest), size), pinned, stream.handle, ("device", "pinned"))

    def dtoh(dest: np.ndarray, src: int, stream: PycudaStream) -> None:
        size = dest.nbytes
        pinned = Part(dest.ctypes.data, size)
        machine.copy("copy out", pinned, Part(int(src), size), stream.handle, ("pinned", "device"))

    def dtod(dest: int, src: int, size: int, stream: PycudaStream) -> None:
        machine.copy("copy across", Part(dest, size), Part(src, size), stream.handle, ("device", "device"))

    def fill(dest: int, data: int, count: int, stream: PycudaStream) -> None:
        machine.fill(Part(dest, count), data, stream.handle)

    device = SimpleNamespace(compute_capability=lambda: machine.capability)
    return SimpleNamespace(
        Context=SimpleNamespace(get_device=lambda: device, synchronize=machine.settle),
        Stream=PycudaStream,
        Event=PycudaEvent,
        mem_alloc=Allocation,
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=htod,
        memcpy_dtoh_async=dtoh,
        memcpy_dtod_async=dtod,
        memset_d8_async=fill,
        module_from_buffer=lambda cubin: SimpleNamespace(get_function=lambda name: Function(cubin, name)),
    )
