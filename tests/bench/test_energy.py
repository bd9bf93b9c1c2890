"""sam_edge.bench.energy and nvml: counters as Linux and the driver show them, on copies of their files and library."""

import ctypes
import sys
from pathlib import Path

import pytest

from sam_edge.bench import energy, nvml
from sam_edge.bench.energy import counters, joules_per_call
from sam_edge.bench.memory import run_alone


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages, one of them with a zone within."""
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "package-1")):
        folder = tmp_path / "powercap" / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("9999999\n")
        (folder / "energy_uj").write_text("5000000\n")
    return tmp_path / "powercap"


def test_a_package_counts_joules_and_its_parts_are_not_counted_twice(powercap: Path, tmp_path: Path) -> None:
    with counters(powercap, tmp_path / "none") as meters:
        assert list(meters) == ["package-0", "package-1"]

        def call() -> None:
            file = powercap / "intel-rapl:0" / "energy_uj"
            file.write_text(str(int(file.read_text()) + 250_000))

        assert joules_per_call(call, meters, stretch_s=0.01) == pytest.approx({"package-0": 0.25, "package-1": 0.0})


def test_a_counter_that_starts_anew_goes_on(powercap: Path, tmp_path: Path) -> None:
    with counters(powercap, tmp_path) as meters:
        (powercap / "intel-rapl:0" / "energy_uj").write_text("1000000")
        assert meters["package-0"]() == pytest.approx(6.0)


def test_the_rails_of_a_jetson_are_integrated(tmp_path: Path) -> None:
    folder = tmp_path / "1-0040" / "hwmon" / "hwmon3"
    folder.mkdir(parents=True)
    (folder / "in1_label").write_text("VDD_IN\n")
    (folder / "in1_input").write_text("5000\n")
    (folder / "curr1_input").write_text("2000\n")
    (folder / "in2_label").write_text("NC\n")
    with counters(tmp_path / "none", tmp_path) as meters:
        assert list(meters) == ["VDD_IN"]
        start = energy.perf_counter()
        before = meters["VDD_IN"]()
        while energy.perf_counter() - start < 0.12:
            pass
        joules, seconds = meters["VDD_IN"]() - before, energy.perf_counter() - start
    assert joules == pytest.approx(10.0 * seconds, rel=0.05)


def test_where_nothing_counts_nothing_is_told(tmp_path: Path) -> None:
    with counters(tmp_path, tmp_path) as meters:
        assert dict(meters) == {}
        called: list[int] = []
        assert joules_per_call(lambda: called.append(1), meters) == {}
        assert called == []


class Library:
    """NVML as one GPU would answer through it."""

    def __init__(self) -> None:
        self.millijoules, self.used, self.reasons = 1000, 2**30, 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle) -> int:
        handle._obj.value = 77
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, found) -> int:
        assert handle.value == 77
        found._obj.value = self.millijoules
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, found) -> int:
        found._obj.used = self.used
        return 0

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle, found) -> int:
        found._obj.value = self.reasons
        return 0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """The double in the library's place."""
    library = Library()
    monkeypatch.setattr(nvml, "_library", lambda: library)
    nvml._devices.cache_clear()
    yield library
    nvml._devices.cache_clear()


def test_a_gpu_counts_joules(gpu: Library, tmp_path: Path) -> None:
    with counters(tmp_path, tmp_path) as meters:

        def call() -> None:
            gpu.millijoules += 500

        assert joules_per_call(call, meters, stretch_s=0.01) == pytest.approx({"gpu0": 0.5})


@pytest.mark.parametrize(("reasons", "throttled"), [(0, False), (0x1, False), (0x40, True), (0x4 | 0x1, True)])
def test_idle_clocks_are_no_throttling(gpu: Library, reasons: int, throttled: bool) -> None:
    gpu.reasons = reasons
    assert nvml.throttled() is throttled


def test_memory_on_the_gpu_is_told_beyond_what_was_in_use(gpu: Library, tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    class Grows(Library):
        def nvmlDeviceGetMemoryInfo(self, handle, found) -> int:
            found._obj.used = 2**30 + (3 * 2**20 if flag.exists() else 0)
            return 0

    gpu.nvmlDeviceGetMemoryInfo = Grows().nvmlDeviceGetMemoryInfo  # type: ignore[method-assign]
    script = f"import time; open({str(flag)!r}, 'w').close(); time.sleep(0.3)"
    taken = run_alone([sys.executable, "-c", script], 30)
    assert taken.device_bytes == 3 * 2**20


def test_without_a_gpu_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_library", lambda: None)
    nvml._devices.cache_clear()
    assert (nvml.energy_joules(), nvml.used_bytes(), nvml.throttled()) == ([], None, None)
    nvml._devices.cache_clear()
