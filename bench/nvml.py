"""What NVIDIA's management library tells of GPUs, asked of the driver's own library: energy, memory, throttling.

Names and numbers are those of nvml.h. On a Jetson there is no such library, or one that tells little of this.
"""

import ctypes
import sys
from functools import cache
from typing import Any

THROTTLES = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
"""nvmlClocksEventReasonSwPowerCap, HwSlowdown, SwThermalSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown: what lowers
clocks under work."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@cache
def _library() -> Any:
    """The library, started; None where there is none."""
    try:
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


@cache
def _devices() -> tuple[Any, ...]:
    library, count = _library(), ctypes.c_uint()
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return ()
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            found.append(handle)
    return tuple(found)


def energy_joules() -> list[float]:
    """Of each GPU since its driver was loaded; none of those that do not count it."""
    found = []
    for handle in _devices():
        millijoules = ctypes.c_ulonglong()
        if _library().nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == 0:
            found.append(millijoules.value / 1000)
    return found


def used_bytes() -> int | None:
    """Memory in use on all GPUs, by whomever; None where there is no GPU that tells."""
    found = []
    for handle in _devices():
        memory = _Memory()
        if _library().nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
            found.append(memory.used)
    return sum(found) if found else None


def throttled() -> bool | None:
    """Whether a GPU's clocks are held down by heat or power just now; None where no GPU tells."""
    found = []
    for handle in _devices():
        reasons = ctypes.c_ulonglong()
        if _library().nvmlDeviceGetCurrentClocksThrottleReasons(handle, ctypes.byref(reasons)) == 0:
            found.append(bool(reasons.value & THROTTLES))
    return any(found) if found else None
