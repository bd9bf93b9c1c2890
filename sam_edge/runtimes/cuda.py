"""The CUDA devices of this machine, asked of the driver alone: no toolkit and no other library is needed for it."""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

from sam_edge.errors import BackendUnavailableError

_DRIVERS = {"win32": "nvcuda.dll"}
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver's interface."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU."""

    name: str
    target: str
    """Its compute capability, as `sm89`."""


@cache
def cuda_devices() -> tuple[CudaDevice, ...]:
    """The devices, in the driver's order; none where there is no driver."""
    try:
        driver = ctypes.CDLL(_DRIVERS.get(sys.platform, "libcuda.so.1"))
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_device(driver, index) for index in range(count.value))


def _device(driver: ctypes.CDLL, index: int) -> CudaDevice:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, len(name), handle)
    version = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(version, (_MAJOR, _MINOR), strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    return CudaDevice(name.value.decode(errors="replace"), f"sm{version[0].value}{version[1].value}")


def machine_target() -> str:
    """The compute capability of the first CUDA device, as `sm89`.

    Raises:
        BackendUnavailableError: there is none.
    """
    devices = cuda_devices()
    if not devices:
        raise BackendUnavailableError("TensorRT needs a CUDA device and there is none: use --runtime onnxruntime.")
    return devices[0].target
