"""sam_edge.commands.device.bench: sweeps, other contenders and energy, on a runtime that draws."""

import os

import numpy as np
import pytest

from sam_edge.commands.device import bench as module
from sam_edge.commands.device.bench import bench
from sam_edge.errors import BenchError
from tests.drawing import DrawingRuntime

PICTURE = np.zeros((40, 60, 3), np.uint8)


class Counted(DrawingRuntime):
    """Knows the threads that it was opened for and the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.threads, self.batches = os.environ.get("OMP_NUM_THREADS"), []

    def encode(self, pixels):
        self.batches.append(len(pixels))
        return super().encode(pixels)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """The runtimes in the order in which they are opened."""
    found: list[Counted] = []

    def open_runtime(spec: str, runtime: str, device: str) -> Counted:
        found.append(Counted())
        return found[-1]

    monkeypatch.setattr(module, "open_runtime", open_runtime)
    return found


def test_each_number_of_threads_is_a_contender(opened: list[Counted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    rows = bench(["nano"], [], image=PICTURE, memory=False, warmup=0, runs=2, threads=(1, 3))
    assert [runtime.threads for runtime in opened] == ["1", "3"]
    assert [row.threads for row in rows] == [1, 3]
    assert rows[1].latencies["encode"].over_first is not None
    assert os.environ["OMP_NUM_THREADS"] == "7"
    with pytest.raises(BenchError, match="threads must be at least 1"):
        bench(["nano"], [], image=PICTURE, memory=False, threads=(0,))


def test_batches_are_encoded_at_once_besides_single_pictures(opened: list[Counted]) -> None:
    (row,) = bench(["nano"], [], image=PICTURE, memory=False, warmup=1, runs=2, batches=(2, 5))
    assert (opened[0].batches.count(2), opened[0].batches.count(5)) == (3, 3)
    assert {"encode", "encode_2", "encode_5"} <= row.latencies.keys()
    with pytest.raises(BenchError, match="at least 1 picture"):
        bench(["nano"], [], image=PICTURE, memory=False, batches=(0,))


def test_somebody_elses_calls_take_turns_in_what_they_can(opened: list[Counted]) -> None:
    called: list[str] = []
    other = {"encode": lambda: called.append("encode"), "end_to_end": lambda: called.append("end_to_end")}
    ticks: list[int] = []
    ours, theirs = bench(
        ["nano"],
        [],
        image=PICTURE,
        memory=False,
        warmup=1,
        runs=2,
        others={"theirs": lambda spec, picture: other},
        on_progress=lambda done, total, text: ticks.append(total - done),
    )
    assert (theirs.runtime, set(theirs.latencies)) == ("theirs", {"encode", "end_to_end"})
    assert theirs.latencies["encode"].over_first is not None
    assert "decode_point" in ours.latencies
    assert called.count("encode") == called.count("end_to_end") == 3
    assert ticks[-1] == 0


def test_energy_is_of_the_calls(opened: list[Counted], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def joules_per_call(call, meters, synchronise):
        call()
        asked.append(len(opened[0].batches))
        return {"package-0": 2.0}

    class Meters:
        def __enter__(self):
            return {"package-0": lambda: 0.0}

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(module, "counters", Meters)
    monkeypatch.setattr(module, "joules_per_call", joules_per_call)
    (row,) = bench(["nano"], [], image=PICTURE, memory=False, warmup=0, runs=1)
    assert row.energy_j == {"encode": {"package-0": 2.0}, "end_to_end": {"package-0": 2.0}}
    # both encode
    assert asked[1] == asked[0] + 1
