"""`sam-edge study trials`: whether `bench`'s comparison can be believed on this machine.

Products of matrices stand for a model. Trial after trial, a contender takes turns with itself: of intervals that hold
95 % all but one in twenty should contain 1. Then with a copy of itself that has a twentieth more to do, which should be
found slower. Last, a process burns a core meanwhile, which the watch should notice.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float32

from sam_edge.bench.disturbance import Disturbance, Watch
from sam_edge.bench.latency import Ratio, measure_in_turn
from sam_edge.bench.provenance import provenance

SIDE = 96
"""Of the matrices: small enough that a product is quick, and large enough that it is not all overhead."""
PARTS = 20
"""Equal parts of a contender's work; a copy that does one more is slower by a twentieth."""
BURN = "while True: pass"


@dataclass(frozen=True)
class Trials:
    """What came of it."""

    alike: tuple[Ratio, ...]
    """A contender over itself."""
    slower: tuple[Ratio, ...]
    """The one with a twentieth more to do over the other."""
    quiet: Disturbance
    """Of the trials: who else worked here."""
    burning: Disturbance
    """While another process burned a core."""

    @property
    def held(self) -> int:
        """Trials of a contender against itself whose interval contains 1."""
        return sum(ratio.low <= 1 <= ratio.high for ratio in self.alike)

    @property
    def found(self) -> int:
        """Trials of the slower one whose interval lies above 1."""
        return sum(ratio.low > 1 for ratio in self.slower)


def run(trials: int, rounds: int, burn_s: float = 1.0) -> Trials:
    """Take the trials, of so many rounds each."""
    repeats = _repeats()
    watch = Watch()
    alike, slower = ([_trial(PARTS, parts, repeats, rounds) for _ in range(trials)] for parts in (PARTS, PARTS + 1))
    quiet = watch.so_far()
    with subprocess.Popen([sys.executable, "-c", BURN]) as other:
        try:
            watch, until = Watch(), perf_counter() + burn_s
            call = _work(PARTS, repeats)
            while perf_counter() < until:
                call()
            burning = watch.so_far()
        finally:
            other.kill()
    return Trials(tuple(alike), tuple(slower), quiet, burning)


def _trial(parts: int, other_parts: int, repeats: int, rounds: int) -> Ratio:
    calls = {"first": _work(parts, repeats), "second": _work(other_parts, repeats)}
    ratio = measure_in_turn(calls, warmup=3, runs=rounds)["second"].over_first
    assert ratio is not None
    return ratio


@cache
def _matrices() -> Float32[np.ndarray, "2 side side"]:
    """The same for all: where they lie in memory makes one copy of a contender faster than another."""
    return np.random.default_rng(0).random((2, SIDE, SIDE), np.float32)


def _work(parts: int, repeats: int) -> Callable[[], None]:
    left, right = _matrices()

    def call() -> None:
        for _ in range(parts * repeats):
            np.dot(left, right)

    return call


def _repeats(part_s: float = 1e-4) -> int:
    """Products in a part of the work, so that a call takes two milliseconds on any machine: less than a time slice."""
    call = _work(1, 50)
    call()
    start = perf_counter()
    call()
    return max(round(50 * part_s / (perf_counter() - start)), 1)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, print, and return what was printed."""
    parser = argparse.ArgumentParser(prog="sam-edge study trials", description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    found = run(given.trials, given.rounds)
    told = {"trials": given.trials, "held": found.held, "found": found.found, **asdict(found)}
    if given.json:
        print(json.dumps({"provenance": provenance(), **told}))
        return told
    print(f"a contender against itself: 1 lies in the interval of {found.held} of {given.trials} trials")
    print(f"against one that does a twentieth more: found slower in {found.found} of {given.trials} trials")
    print(f"while a process burned a core: {found.burning.words() or 'nothing was noticed'}")
    if (words := found.quiet.words()) is not None:
        print(f"during the trials themselves: {words}")
    return told


if __name__ == "__main__":
    main()
