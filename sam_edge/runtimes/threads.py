"""How many threads a runtime takes on the CPU: the same for all, so that a race between them is between equals."""

import os
from pathlib import Path


def cpu_threads() -> int:
    """`OMP_NUM_THREADS`, or a thread per core that this process may use; two that share a core count once."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return max(len({_siblings(cpu) for cpu in usable}), 1)


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
