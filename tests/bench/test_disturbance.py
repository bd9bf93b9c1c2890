"""sam_edge.bench.disturbance: what else a machine did meanwhile."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_edge.bench import disturbance
from sam_edge.bench.disturbance import Disturbance, Watch

BURN = "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass"
linux = pytest.mark.skipif(disturbance._others_seconds() is None, reason="only Linux counts others' time")


@linux
def test_a_process_that_burns_a_core_is_noticed_until_it_is_ones_own() -> None:
    """A child is another process while it runs, and one's own work when it has been waited for."""
    watch = Watch()
    with subprocess.Popen([sys.executable, "-c", BURN]) as other:
        time.sleep(1.0)
        meanwhile = watch.so_far()
        other.wait()
    assert meanwhile.other_cores is not None
    # on a machine with as many busy processes as cores it has a part of one
    assert meanwhile.other_cores > disturbance.MOST_OTHERS
    assert "kept" in (meanwhile.words() or "")


def test_ones_own_work_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([5.0, 5.0])
    monkeypatch.setattr(disturbance, "_others_seconds", lambda: next(seconds))
    found = Watch().so_far()
    assert found.other_cores == 0
    assert found.words() is None or found.throttled


@linux
def test_own_processor_time_is_taken_off() -> None:
    before = disturbance._others_seconds()
    wall, start = time.monotonic(), time.process_time()
    while time.process_time() - start < 0.3:
        pass
    after = disturbance._others_seconds()
    assert before is not None
    assert after is not None
    # others may have had the other cores in that time, but not this one
    cores = os.cpu_count() or 1
    assert after - before < (time.monotonic() - wall) * cores - 0.2


def test_throttling_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(disturbance, "_throttles", lambda: next(counts))
    for name in ("_others_seconds", "_stolen_seconds", "_held_back_seconds"):
        monkeypatch.setattr(disturbance, name, lambda: None)
    monkeypatch.setattr(disturbance.nvml, "throttled", lambda: None)
    found = Watch().so_far()
    assert found == Disturbance(None, True)
    assert found.words() == "these times are longer than the machine's own: the processor grew hot and slowed down."


def test_a_system_that_tells_nothing_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_throttles", "_others_seconds", "_stolen_seconds", "_held_back_seconds"):
        monkeypatch.setattr(disturbance, name, lambda: None)
    monkeypatch.setattr(disturbance.nvml, "throttled", lambda: None)
    assert Watch().so_far() == Disturbance(None, None, None, None, None)
    assert Watch().so_far().words() is None


def test_what_a_hypervisor_or_a_limit_takes_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(disturbance, "perf_counter", lambda: next(clock))
    stolen = iter([3.0, 8.0])
    monkeypatch.setattr(disturbance, "_stolen_seconds", lambda: next(stolen))
    monkeypatch.setattr(disturbance, "_others_seconds", lambda: None)
    stat = tmp_path / "cpu.stat"
    monkeypatch.setattr(disturbance, "CPU_STATS", (tmp_path / "none", stat))
    stat.write_text("usage_usec 7\nthrottled_usec 1000000\n")
    watch = Watch()
    stat.write_text("usage_usec 7\nthrottled_usec 3500000\n")
    found = watch.so_far()
    assert (found.stolen_cores, found.held_back) == (0.5, 0.25)
    words = found.words() or ""
    assert "hypervisor took 0.5 cores" in words
    assert "held back for 25%" in words


def test_a_gpu_held_down_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disturbance.nvml, "throttled", lambda: True)
    assert "the GPU was held down" in (Watch().so_far().words() or "")
