"""What a CUDA kernel's launcher sees of a device: memory with an address, and launches by name.

`sam_edge.kernels.launcher.Gpu` is one; the tests have another, which runs the same sources on the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

CSRC = Path(__file__).with_name("csrc")
HEADER = "device.cuh"
"""What every source includes."""


@dataclass(frozen=True)
class Source:
    """A file of csrc and the kernels in it."""

    name: str
    """As `attention`, of csrc/attention.cu."""
    kernels: tuple[str, ...]
    defines: tuple[str, ...] = ()
    """Macros that it is compiled with, as `HEAD_WIDTH=64`."""

    @property
    def label(self) -> str:
        """What tells it from the others, in file names."""
        return "-".join((self.name, *(define.rpartition("=")[2] for define in self.defines)))

    @property
    def file(self) -> Path:
        """Where it lies."""
        return CSRC / f"{self.name}.cu"


@dataclass(frozen=True)
class DeviceArray:
    """An array in a device's memory, in rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    """0 if it holds nothing."""
    memory: Any = field(repr=False)
    """What gives the memory back once nobody has it any more."""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, index: int) -> "DeviceArray":
        """One entry of the first axis, where it lies."""
        if not 0 <= index < self.shape[0]:
            # without it a loop over the array would not end
            raise IndexError(f"{index} of {self.shape[0]}")
        step = self.nbytes // self.shape[0]
        return DeviceArray(self.shape[1:], self.dtype, self.address + index * step, self.memory)


Argument = DeviceArray | np.generic
"""What a kernel is given: an address, or a number of exactly the parameter's type."""


@runtime_checkable
class Device(Protocol):
    """Where kernels run, in the order of their launches."""

    def put(self, values: np.ndarray) -> DeviceArray:
        """A copy on the device."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds anything; aligned to 256 bytes."""
        ...

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Memory that holds zeros."""
        ...

    def get(self, array: DeviceArray) -> np.ndarray:
        """A copy in the host's memory, of what has been computed by then."""
        ...

    def launch(
        self,
        source: Source,
        kernel: str,
        grid: tuple[int, int, int],
        block: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Enqueue a kernel over `grid` blocks of `block` threads, each block with so much dynamic shared memory."""
        ...
