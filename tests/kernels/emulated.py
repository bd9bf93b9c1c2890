"""CUDA kernels on the CPU: their sources compiled by the host's compiler behind kernels/emulation.h."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

from sam_edge.kernels.gpu import CSRC, HEADER, Argument, DeviceArray, Source

COMPILER = shutil.which("g++") or shutil.which("clang++")
# without contraction a * b + c is rounded twice, as in NumPy
FLAGS = (
    "-std=c++17",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    # each library its own emulation: what is inline would be one for all
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
SANITIZED = os.environ.get("SAM_EDGE_EMULATION") == "sanitized"
MARGIN = 256
"""Bytes around every array that no kernel may change; behind it there are none where a sanitizer sees every access."""
GUARD = 0xA5
LIBC = ctypes.CDLL(None)
RISING, FALLING, SHUFFLED = 0, 1, 2


class EmulationError(AssertionError):
    """A kernel that does what hangs or is undefined on a GPU."""


class Memory:
    """An allocation between margins, aligned as CUDA's; it goes when nobody has it any more."""

    def __init__(self, size: int) -> None:
        whole = MARGIN + size + (0 if SANITIZED else MARGIN)
        pointer = ctypes.c_void_p()
        assert LIBC.posix_memalign(ctypes.byref(pointer), ctypes.c_size_t(MARGIN), ctypes.c_size_t(whole)) == 0
        allocated = pointer.value
        assert allocated is not None
        finalize(self, LIBC.free, pointer)
        self.address, self.size = allocated + MARGIN, size
        self._around = np.ctypeslib.as_array((ctypes.c_uint8 * whole).from_address(allocated))
        self._around[...] = GUARD

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """Some of it, where it lies."""
        first = MARGIN + address - self.address
        return self._around[first : first + size]

    def whole(self) -> bool:
        """Whether both margins are as they were."""
        around = self._around[:MARGIN], self._around[MARGIN + self.size :]
        return all(bool((part == GUARD).all()) for part in around)


@cache
def library(text: str, folder: Path) -> ctypes.CDLL:
    """C++ that lies in `folder`, compiled; kept for as long as it and its compiler's flags are the same."""
    assert COMPILER is not None
    flags = (*FLAGS, *(SANITIZERS if SANITIZED else ()))
    parts = [text, *flags, *(file.read_text() for file in (CSRC / HEADER, CSRC.parent / "emulation.h"))]
    name = sha256("\0".join(parts).encode()).hexdigest()[:24]
    kept = Path(__file__).parents[2] / "build" / "emulation"
    kept.mkdir(parents=True, exist_ok=True)
    out = kept / f"{name}.so"
    if not out.is_file():
        # several processes of tests may compile the same
        with tempfile.TemporaryDirectory(dir=kept) as work:
            file, made = Path(work) / "kernels.cpp", Path(work) / "kernels.so"
            file.write_text(text)
            command = [COMPILER, *flags, "-I", str(folder), str(file), "-o", str(made)]
            # the compiler itself is not what is to be checked
            environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            assert done.returncode == 0, done.stderr[-4000:]
            made.replace(out)
    loaded = ctypes.CDLL(str(out))
    loaded.emulation_launch.restype = ctypes.c_char_p
    loaded.emulation_parameter.restype = ctypes.c_long
    loaded.emulation_parameter.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    return loaded


def code(source: Source) -> str:
    """A source and the names of its kernels."""
    defines = "\n".join(f"#define {define.replace('=', ' ')}" for define in source.defines)
    names = "\n".join(f"EMULATED({kernel})" for kernel in source.kernels)
    return f"{defines}\n{source.file.read_text()}\n{names}\n"


class Emulation:
    """A device, as `sam_edge.kernels.gpu.Device` has it."""

    def __init__(self, order: int = RISING) -> None:
        """`order` is that of a block's threads: rising, falling, or shuffled by any larger number."""
        self.order = order
        self.launches: list[str] = []

    def put(self, values: np.ndarray) -> DeviceArray:
        """A copy between margins."""
        array = self._allocated(values.shape, values.dtype)
        _of(array)[...] = values
        return array

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Garbage."""
        return self._allocated(shape, np.dtype(dtype))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Zeros."""
        array = self.empty(shape, dtype)
        _of(array)[...] = 0
        return array

    def get(self, array: DeviceArray) -> np.ndarray:
        """A copy."""
        return _of(array).copy()

    def launch(
        self,
        source: Source,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Runs a kernel at once.

        Raises:
            EmulationError: what emulation.h reports, parameters of other sizes, or a write beside an array.
        """
        self.launches.append(kernel)
        run(library(code(source), CSRC), kernel, grid, block, arguments, shared_bytes, self.order)

    def _allocated(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = Memory(size)
        return DeviceArray(tuple(shape), dtype, memory.address if size else 0, memory)


def run(
    loaded: ctypes.CDLL,
    kernel: str,
    grid: tuple[int, int, int],
    block: int | tuple[int, int, int],
    arguments: Sequence[Argument],
    shared_bytes: int = 0,
    order: int = RISING,
) -> None:
    """Runs a kernel of a compiled library."""
    sizes = []
    while (size := loaded.emulation_parameter(kernel.encode(), len(sizes))) >= 0:
        sizes.append(size)
    given = [8 if isinstance(argument, DeviceArray) else argument.nbytes for argument in arguments]
    if size == -1 and sizes != given:
        raise EmulationError(f"{kernel} has parameters of {sizes} bytes, got {given}")
    values = [np.array(argument.address if isinstance(argument, DeviceArray) else argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    threads = (block, 1, 1) if isinstance(block, int) else block
    failure = loaded.emulation_launch(
        kernel.encode(),
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*threads),
        ctypes.c_size_t(shared_bytes),
        pointers,
        ctypes.c_uint(order),
    )
    if failure:
        raise EmulationError(failure.decode())
    for argument in arguments:
        own = isinstance(argument, DeviceArray) and isinstance(argument.memory, Memory)
        if own and argument.address and not argument.memory.whole():
            raise EmulationError(f"{kernel} writes beside an array of {argument.shape}")


def _of(array: DeviceArray) -> np.ndarray:
    memory = array.memory
    if not isinstance(memory, Memory):
        # another library's, which shares the CPU's memory here
        content = (ctypes.c_uint8 * array.nbytes).from_address(array.address)
        return np.ctypeslib.as_array(content).view(array.dtype).reshape(array.shape)
    return memory.bytes_at(array.address or memory.address, array.nbytes).view(array.dtype).reshape(array.shape)
