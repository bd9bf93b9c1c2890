"""sam_edge.bench.disturbance: what else a machine did meanwhile."""

import os
import subprocess
import sys
import time

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
    monkeypatch.setattr(disturbance, "_others_seconds", lambda: None)
    found = Watch().so_far()
    assert found == Disturbance(None, True)
    assert found.words() == "these times are longer than the machine's own: the processor grew hot and slowed down."


def test_a_system_that_tells_nothing_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_throttles", "_others_seconds"):
        monkeypatch.setattr(disturbance, name, lambda: None)
    assert Watch().so_far().words() is None
