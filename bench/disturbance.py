"""What else a machine did while something was timed on it: others' work, a hypervisor's, limits and throttling."""

import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from sam_edge.bench import nvml

MOST_OTHERS = 0.1
"""Cores that others may keep busy before times are no longer one's own: a tenth of one."""
MOST_HELD_BACK = 0.01
"""Share of the time for which a process may be held back by its control group."""
CPU_STATS = (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpu/cpu.stat"))
"""Of control groups, version 2 and 1, as a container sees its own."""


@dataclass(frozen=True)
class Disturbance:
    """Of a stretch of time; what the system does not tell is None."""

    other_cores: float | None
    """Cores that other processes kept busy, on average."""
    throttled: bool | None
    """Whether a core was slowed down because it grew too hot."""
    stolen_cores: float | None = None
    """Cores that the hypervisor gave to other machines while this one wanted them, on average."""
    held_back: float | None = None
    """Share of the time for which the control group, whose processor time was used up, waited; of all its threads."""
    gpu_throttled: bool | None = None
    """Whether a GPU's clocks were held down by heat or power, at the start or the end."""

    def words(self) -> str | None:
        """What to say of it beside times; None where there is nothing to say."""
        causes = []
        if self.other_cores is not None and self.other_cores > MOST_OTHERS:
            causes.append(f"other processes kept {self.other_cores:.1f} cores busy meanwhile")
        if self.stolen_cores is not None and self.stolen_cores > MOST_OTHERS:
            causes.append(f"the hypervisor took {self.stolen_cores:.1f} cores away")
        if self.held_back is not None and self.held_back > MOST_HELD_BACK:
            causes.append(f"this container was held back for {self.held_back:.0%} of the time")
        if self.throttled:
            causes.append("the processor grew hot and slowed down")
        if self.gpu_throttled:
            causes.append("the GPU was held down by heat or power")
        return f"these times are longer than the machine's own: {' and '.join(causes)}." if causes else None


class Watch:
    """Counts from its creation on."""

    def __init__(self) -> None:
        self._start, self._busy, self._throttles = perf_counter(), _others_seconds(), _throttles()
        self._stolen, self._held, self._gpu = _stolen_seconds(), _held_back_seconds(), nvml.throttled()

    def so_far(self) -> Disturbance:
        """Since then. Processes that this one started count as its own once they have ended."""
        throttles, gpu = _throttles(), nvml.throttled()
        elapsed = max(perf_counter() - self._start, 1e-9)

        def share(now: float | None, before: float | None) -> float | None:
            return None if now is None or before is None else max(now - before, 0.0) / elapsed

        hot = None if throttles is None or self._throttles is None else throttles > self._throttles
        return Disturbance(
            share(_others_seconds(), self._busy),
            hot,
            share(_stolen_seconds(), self._stolen),
            share(_held_back_seconds(), self._held),
            None if gpu is None else gpu or bool(self._gpu),
        )


def _processor_seconds() -> list[float] | None:
    """Of all processors by kind (proc_stat(5)); None but on Linux."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        return [int(field) / os.sysconf("SC_CLK_TCK") for field in line.split()[1:9]]
    except (OSError, ValueError):
        return None


def _others_seconds() -> float | None:
    """Processor time of all but this process and the children it has waited for."""
    found = _processor_seconds()
    if found is None or len(found) < 7:
        return None
    user, nice, system, _idle, _wait, irq, softirq = found[:7]
    return user + nice + system + irq + softirq - sum(os.times()[:4])


def _stolen_seconds() -> float | None:
    """Time that a hypervisor ran others in, while this machine wanted to run."""
    found = _processor_seconds()
    return None if found is None or len(found) < 8 else found[7]


def _held_back_seconds() -> float | None:
    """Time that the control group's threads waited for its next period, where it has a limit."""
    for file in CPU_STATS:
        try:
            values = dict(line.split() for line in file.read_text().splitlines())
        except (OSError, ValueError):
            continue
        for key, unit in (("throttled_usec", 1e-6), ("throttled_time", 1e-9)):
            if key in values:
                return int(values[key]) * unit
    return None


def _throttles() -> int | None:
    """How often cores were throttled since the machine started, where it counts that."""
    counts = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    try:
        found = [int(file.read_text()) for file in counts]
    except (OSError, ValueError):
        return None
    return sum(found) if found else None
