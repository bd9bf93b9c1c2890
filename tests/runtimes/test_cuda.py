"""sam_edge.runtimes.cuda: what the driver says of its devices, and machines without one."""

import ctypes
from collections.abc import Iterator

import pytest

from sam_edge.errors import BackendUnavailableError
from sam_edge.runtimes import cuda
from sam_edge.runtimes.cuda import CudaDevice, cuda_devices, machine_target

DEVICES = [("NVIDIA GeForce RTX 4090", 8, 9), ("NVIDIA RTX PRO 6000", 12, 0)]


class Driver:
    """libcuda, as far as it is asked, by its own names."""

    def __init__(self, started: int = 0) -> None:
        self.started = started

    def cuInit(self, flags: int) -> int:
        return self.started

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(DEVICES)
        return 0

    def cuDeviceGet(self, handle, index: int) -> int:
        handle._obj.value = 100 + index
        return 0

    def cuDeviceGetName(self, name, length: int, handle: ctypes.c_int) -> int:
        text = DEVICES[handle.value - 100][0].encode()
        assert len(text) < length
        name.value = text
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, handle: ctypes.c_int) -> int:
        # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value._obj.value = DEVICES[handle.value - 100][{75: 1, 76: 2}[attribute]]
        return 0


@pytest.fixture(autouse=True)
def unasked() -> Iterator[None]:
    """A process that has not asked its driver, before and after."""
    cuda_devices.cache_clear()
    yield
    cuda_devices.cache_clear()


def test_devices_are_the_drivers_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver())
    first, second = DEVICES
    assert cuda_devices() == (CudaDevice(first[0], "sm89"), CudaDevice(second[0], "sm120"))
    assert machine_target() == "sm89"


@pytest.mark.parametrize(("platform", "library"), [("linux", "libcuda.so.1"), ("win32", "nvcuda.dll")])
def test_each_system_has_its_own_name_for_the_driver(
    platform: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(cuda.sys, "platform", platform)
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: asked.append(name) or Driver())
    assert len(cuda_devices()) == 2
    assert asked == [library]


@pytest.mark.parametrize("absent", [True, False], ids=["no driver", "a driver without a device"])
def test_without_a_device_there_is_none_and_a_target_is_refused(absent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Driver:
        if absent:
            raise OSError(f"{name}: cannot open shared object file")
        # CUDA_ERROR_NO_DEVICE
        return Driver(started=100)

    monkeypatch.setattr(cuda.ctypes, "CDLL", load)
    assert cuda_devices() == ()
    with pytest.raises(BackendUnavailableError, match=r"CUDA device.*--runtime onnxruntime") as refused:
        machine_target()
    assert "\n" not in str(refused.value)
