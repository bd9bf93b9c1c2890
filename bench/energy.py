"""Energy of a call, where the hardware counts it: RAPL's packages, a Jetson's rails, NVIDIA's GPUs.

A counter is of the whole package, board or GPU: what others do meanwhile is in it, and so is what it takes idle. A call
is repeated for a stretch that is long against the counters' steps (RAPL's are a millisecond; a Jetson's rails are read
some twenty times a second).
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from types import MappingProxyType

from sam_edge.bench import nvml

POWERCAP = Path("/sys/class/powercap")
INA3221 = Path("/sys/bus/i2c/drivers/ina3221")
STRETCH_S = 1.0
"""Least time over which a call's energy is counted."""
SAMPLE_S = 0.05
"""Between two readings of a rail's power."""

Read = Callable[[], float]
"""Joules, counted from any point on."""


@contextmanager
def counters(powercap: Path = POWERCAP, rails: Path = INA3221) -> Iterator[Mapping[str, Read]]:
    """What counts energy here, by name: `package-0`, `VDD_IN`, `gpu0`; nothing where nothing does, or may be read."""
    with ExitStack() as stack:
        found: dict[str, Read] = dict(_rapl(powercap))
        for name, power in _rails(rails).items():
            found[name] = stack.enter_context(_integrated(power))
        for index in range(len(nvml.energy_joules())):
            found[f"gpu{index}"] = lambda index=index: nvml.energy_joules()[index]  # type: ignore[misc]
        yield MappingProxyType(found)


def joules_per_call(
    call: Callable[[], object],
    meters: Mapping[str, Read],
    synchronise: Callable[[], None] | None = None,
    stretch_s: float = STRETCH_S,
) -> dict[str, float]:
    """Energy of one call by each counter, the mean over `stretch_s` or more of them; nothing where nothing counts."""
    if not meters:
        return {}
    wait = synchronise or (lambda: None)
    wait()
    before = {name: read() for name, read in meters.items()}
    start, calls = perf_counter(), 0
    while not calls or perf_counter() - start < stretch_s:
        call()
        calls += 1
    wait()
    return {name: (read() - before[name]) / calls for name, read in meters.items()}


def _rapl(root: Path) -> Iterator[tuple[str, Read]]:
    """Each package's counter; zones within a package are part of it."""
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue
        try:
            name = (zone / "name").read_text().strip()
            most = int((zone / "max_energy_range_uj").read_text())
            int((zone / "energy_uj").read_text())
        except (OSError, ValueError):
            # only root may read it on many systems
            continue
        yield name, _unwrapped(zone / "energy_uj", most)


def _unwrapped(file: Path, most: int) -> Read:
    """A counter of microjoules that starts anew at `most`: to be read more often than it does so."""
    last, whole = int(file.read_text()), 0

    def read() -> float:
        nonlocal last, whole
        now = int(file.read_text())
        whole += now - last if now >= last else now - last + most + 1
        last = now
        return whole / 1e6

    return read


def _rails(root: Path) -> dict[str, Read]:
    """Watts of each rail of a Jetson's power monitor."""
    found: dict[str, Read] = {}
    for label in sorted(root.glob("*/hwmon/hwmon*/in[0-9]_label")):
        volts, amperes = (label.with_name(f"{kind}{label.name[2]}_input") for kind in ("in", "curr"))
        try:
            int(volts.read_text()), int(amperes.read_text())
            name = label.read_text().strip()
        except (OSError, ValueError):
            continue
        # millivolts and milliamperes
        found[name] = lambda v=volts, a=amperes: int(v.read_text()) * int(a.read_text()) / 1e6  # type: ignore[misc]
    return found


@contextmanager
def _integrated(power: Read) -> Iterator[Read]:
    """Joules of a power that is read now and then, between readings as a trapezium."""
    total, last_w, last_s = 0.0, power(), perf_counter()
    done, lock = threading.Event(), threading.Lock()

    def read() -> float:
        nonlocal total, last_w, last_s
        with lock:
            now_w, now_s = power(), perf_counter()
            total += (now_w + last_w) / 2 * (now_s - last_s)
            last_w, last_s = now_w, now_s
            return total

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            read()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield read
    finally:
        done.set()
        thread.join()
