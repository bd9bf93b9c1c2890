"""What else a machine did while something was timed on it: others' work, and throttling."""

import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

MOST_OTHERS = 0.1
"""Cores that others may keep busy before times are no longer one's own: a tenth of one."""


@dataclass(frozen=True)
class Disturbance:
    """Of a stretch of time; what the system does not tell is None."""

    other_cores: float | None
    """Cores that other processes kept busy, on average."""
    throttled: bool | None
    """Whether a core was slowed down because it grew too hot."""

    def words(self) -> str | None:
        """What to say of it beside times; None where there is nothing to say."""
        causes = []
        if self.other_cores is not None and self.other_cores > MOST_OTHERS:
            causes.append(f"other processes kept {self.other_cores:.1f} cores busy meanwhile")
        if self.throttled:
            causes.append("the processor grew hot and slowed down")
        return f"these times are longer than the machine's own: {' and '.join(causes)}." if causes else None


class Watch:
    """Counts from its creation on."""

    def __init__(self) -> None:
        self._start, self._busy, self._throttles = perf_counter(), _others_seconds(), _throttles()

    def so_far(self) -> Disturbance:
        """Since then. Processes that this one started count as its own once they have ended."""
        busy, throttles = _others_seconds(), _throttles()
        elapsed = perf_counter() - self._start
        others = None if busy is None or self._busy is None else max(busy - self._busy, 0.0) / max(elapsed, 1e-9)
        hot = None if throttles is None or self._throttles is None else throttles > self._throttles
        return Disturbance(others, hot)


def _others_seconds() -> float | None:
    """Processor time of all but this process and the children it has waited for (proc_stat(5)); None but on Linux."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, _idle, _wait, irq, softirq = (int(field) for field in line.split()[1:8])
    except (OSError, ValueError):
        return None
    everything = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return everything - sum(os.times()[:4])


def _throttles() -> int | None:
    """How often cores were throttled since the machine started, where it counts that."""
    counts = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    try:
        found = [int(file.read_text()) for file in counts]
    except (OSError, ValueError):
        return None
    return sum(found) if found else None
