"""A CUDA device that runs the kernels: its memory, its one stream, and their machine code.

All work goes through one stream, so it happens in the order in which it was asked for. Memory that nobody has any more
goes to later work on the same stream without waiting: what still reads it comes before what will write it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam_edge.kernels.compiler import cubin_of
from sam_edge.kernels.driver import Driver, open_driver
from sam_edge.kernels.gpu import Argument, DeviceArray, Source

ALIGNMENT = 256
"""Bytes; what CUDA gives, and TensorRT asks for."""


class Gpu:
    """The first CUDA device, as `sam_edge.kernels.gpu.Device` has it."""

    def __init__(self, driver: Driver | None = None) -> None:
        """`driver` None opens whichever there is.

        Raises:
            BackendUnavailableError: no CUDA device, or neither cuda.bindings nor pycuda.
        """
        self.driver = open_driver() if driver is None else driver
        self.stream = self.driver.stream()
        self._pool = Pool(self.driver)
        self._staging = Staging(self.driver)
        self._functions: dict[tuple[str, str], Any] = {}

    @property
    def target(self) -> str:
        """Its compute capability, as `sm89`."""
        return self.driver.target

    def put(self, values: np.ndarray) -> DeviceArray:
        """A copy on the device; what was given may change once this returns."""
        array = self.empty(values.shape, values.dtype)
        self.write(array, values)
        return array

    def write(self, array: DeviceArray, values: np.ndarray) -> None:
        """Values into memory that is there already.

        Raises:
            ValueError: another shape or type.
        """
        if values.shape != array.shape or values.dtype != array.dtype:
            raise ValueError(f"{array.shape} {array.dtype} cannot take {values.shape} {values.dtype}")
        if array.nbytes:
            piece = self._staging.take(array.nbytes)
            pinned = piece[: array.nbytes]
            np.copyto(pinned.view(array.dtype).reshape(array.shape), values)
            self.driver.copy_in(array.address, pinned, self.stream)
            self._staging.give_back(piece, self.driver.event(self.stream))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds anything."""
        shape, dtype = tuple(int(side) for side in shape), np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        lease = self._pool.lease(size) if size else None
        return DeviceArray(shape, dtype, lease.address if lease else 0, lease)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds zeros."""
        array = self.empty(shape, dtype)
        if array.nbytes:
            self.driver.fill_zeros(array.address, array.nbytes, self.stream)
        return array

    def get(self, array: DeviceArray) -> np.ndarray:
        """A copy in the host's memory, after all that was enqueued."""
        values = np.empty(array.shape, array.dtype)
        if array.nbytes:
            piece = self._staging.take(array.nbytes)
            pinned = piece[: array.nbytes]
            self.driver.copy_out(pinned, array.address, self.stream)
            event = self.driver.event(self.stream)
            self.synchronise()
            np.copyto(values, pinned.view(array.dtype).reshape(array.shape))
            self._staging.give_back(piece, event)
        return values

    def launch(
        self,
        source: Source,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Enqueue a kernel, compiled if it never was.

        Raises:
            BackendUnavailableError, SamEdgeError: see `sam_edge.kernels.compiler.compile_source`.
        """
        name = source.label, kernel
        if name not in self._functions:
            self._functions[name] = self.driver.function(cubin_of(source, self.target), kernel)
        values = [np.uint64(a.address) if isinstance(a, DeviceArray) else a for a in arguments]
        self.driver.launch(self._functions[name], grid, block, shared_bytes, self.stream, values)

    def synchronise(self) -> None:
        """Wait for all that was enqueued."""
        self.driver.synchronise(self.stream)


class Lease:
    """Memory that goes back to its pool when it goes itself."""

    def __init__(self, pool: "Pool", size: int, address: int, memory: Any) -> None:
        self.address = address
        self._pool, self._size, self._memory = pool, size, memory

    def __del__(self) -> None:
        self._pool.take_back(self._size, self.address, self._memory)


def rounded(size: int) -> int:
    """The size of the piece for `size` bytes: an eighth more at most, so that pieces are used again."""
    step = max(ALIGNMENT, 1 << max((size - 1).bit_length() - 4, 0))
    return -(-size // step) * step


class Pool:
    """The device's memory for the work of one stream."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, list[tuple[int, Any]]] = defaultdict(list)

    def lease(self, size: int) -> Lease:
        """At least `size` bytes."""
        size = rounded(size)
        free = self._free[size]
        address, memory = free.pop() if free else self._driver.allocate(size)
        return Lease(self, size, address, memory)

    def take_back(self, size: int, address: int, memory: Any) -> None:
        """For later work of the stream."""
        self._free[size].append((address, memory))


class Staging:
    """Pinned memory between NumPy's arrays and the device; each piece is used again once its copy is done."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, list[tuple[np.ndarray, Any]]] = defaultdict(list)

    def take(self, size: int) -> np.ndarray:
        """At least `size` bytes that no copy uses any more."""
        size = rounded(size)
        free = self._free[size]
        for place, (piece, event) in enumerate(free):
            if self._driver.passed(event):
                del free[place]
                return piece
        return self._driver.pinned(size)

    def give_back(self, piece: np.ndarray, event: Any) -> None:
        """For use when `event` has passed."""
        self._free[piece.nbytes].append((piece, event))
