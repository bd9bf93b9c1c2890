"""Latency: what is counted, in which order, and which percentile."""

from typing import Any

import numpy as np
import pytest

from sam_edge.bench import latency
from sam_edge.bench.latency import (
    MEASUREMENTS,
    Call,
    Candidate,
    Latency,
    bench_candidates,
    measure_in_turn,
    runtime_calls,
    synchroniser,
)
from sam_edge.errors import BenchError
from sam_edge.segment.config import DecoderConfig, ModelConfig, Thresholds, uniform_blocks
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Runtime

ON_A_CPU = tuple(name for name in MEASUREMENTS if not name.startswith("transfer"))


class Clock:
    """A clock that only a call moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(latency, "perf_counter", lambda: self.now_s)

    def takes(self, durations_s: list[float]):
        """A call that takes the next of some durations."""
        left = iter(durations_s)

        def call() -> None:
            self.now_s += next(left)

        return call


class FakeRuntime(Runtime):
    """Answers in the right shapes; records what it was asked."""

    def __init__(self, name: str = "fake", log: list[tuple[str, str, int]] | None = None) -> None:
        self.name = name
        self.config = ModelConfig(
            arch="vit",
            image_size=64,
            blocks=uniform_blocks(1, 8, 1, (0,), window=0),
            decoder=DecoderConfig(dim=16),
            thresholds=Thresholds(pred_iou=0.5, stability=0.5),
        )
        self.log = [] if log is None else log

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape == (1, 3, 64, 64)
        assert pixels.dtype == np.float32
        self.log.append((self.name, "encode", 1))
        return np.zeros((1, 8, 4, 4), np.float32)

    def decode(self, embeddings: np.ndarray, prompts: Prompts) -> tuple[np.ndarray, np.ndarray]:
        assert (prompts.coords.dtype, prompts.labels.dtype) == (np.float32, np.int64)
        sets = prompts.coords.shape[1]
        self.log.append((self.name, "decode", sets))
        logits = np.full((1, sets, 4, 16, 16), -10.0, np.float32)
        # a square around each prompt: everything mode finds as many masks as there are far-apart points
        for index, (x, y) in enumerate((prompts.coords[0, :, 0] / 4).astype(int).tolist()):
            logits[0, index, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 10.0
        return logits, np.ones((1, sets, 4), np.float32)


def measure(call: Call, **settings: Any) -> Latency:
    return measure_in_turn({"call": call}, **settings)["call"]


def bench_runtimes(runtimes: list[FakeRuntime], picture: np.ndarray, **settings: Any) -> list[dict[str, Latency]]:
    candidates = [Candidate(runtime_calls(runtime, picture), synchroniser(runtime)) for runtime in runtimes]
    return bench_candidates(candidates, **settings)


@pytest.fixture
def picture() -> np.ndarray:
    """A random RGB picture, 40 x 60."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_percentiles_are_numpys_on_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    durations_s = np.random.default_rng(0).exponential(0.01, 40)
    found = measure(Clock(monkeypatch).takes(durations_s.tolist()), warmup=0, runs=40)
    median, p90, p95, p99 = np.percentile(durations_s * 1000, (50, 90, 95, 99))
    assert found.runs == 40
    assert found.min_ms == pytest.approx(1000 * durations_s.min())
    assert found.mean_ms == pytest.approx(1000 * durations_s.mean())
    assert (found.median_ms, found.p90_ms, found.p95_ms, found.p99_ms) == pytest.approx((median, p90, p95, p99))


def test_warm_up_calls_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(Clock(monkeypatch).takes([9.0, 8.0, 0.25, 0.25, 0.25]), warmup=2, runs=3)
    assert found == Latency(250, 250, 250, 250, 250, 250, 3)


def test_waiting_for_the_device_is_inside_the_clock_and_earlier_work_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    queued_s = [5.0]  # work that an earlier user of the device left behind

    def call() -> None:
        queued_s.append(0.5)

    def synchronise() -> None:
        clock.now_s += sum(queued_s)
        queued_s.clear()

    assert measure(call, warmup=0, runs=2, synchronise={"call": synchronise}) == Latency(
        500, 500, 500, 500, 500, 500, 2
    )


def test_candidates_take_turns_round_by_round() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    done: list[None] = []
    found = measure_in_turn(calls, warmup=1, runs=7, on_run=lambda: done.append(None))
    rounds = ["".join(order[start : start + 3]) for start in range(0, 24, 3)]
    assert ["".join(sorted(turn)) for turn in rounds] == ["abc"] * 8
    assert len(set(rounds)) > 2
    # no place in a round is one candidate's own
    assert [turn[::-1] for turn in rounds[::2]] == rounds[1::2]
    assert list(found) == ["a", "b", "c"]
    assert len(done) == 24


def test_rounds_go_on_until_all_have_had_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    calls = {"slow": clock.takes([0.5] * 50), "fast": clock.takes([0.1] * 50)}
    found = measure_in_turn(calls, warmup=1, runs=3, min_seconds=2.05)
    assert {latency.runs for latency in found.values()} == {21}
    assert measure_in_turn({"one": clock.takes([2.0] * 9)}, warmup=0, runs=3, min_seconds=1.0)["one"].runs == 3


def test_times_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rng = Clock(monkeypatch), np.random.default_rng(1)
    # a machine whose speed changes by ten leaves no trace in ratios
    speeds = 10 ** rng.uniform(0, 1, 30)
    noise = rng.uniform(0.9, 1.1, 30)
    calls = {"first": clock.takes(speeds.tolist()), "second": clock.takes((0.5 * noise * speeds).tolist())}
    found = measure_in_turn(calls, warmup=0, runs=30)
    ratio = found["second"].over_first
    assert found["first"].over_first is None
    assert ratio is not None
    assert ratio.median == pytest.approx(np.median(0.5 * noise))
    assert 0.45 < ratio.low < ratio.median < ratio.high < 0.55


@pytest.mark.parametrize(("warmup", "runs"), [(0, 0), (-1, 3)])
def test_impossible_settings_are_refused(warmup: int, runs: int) -> None:
    with pytest.raises(BenchError, match="at least"):
        measure(lambda: None, warmup=warmup, runs=runs)


def test_a_runtime_gets_every_measurement(picture: np.ndarray) -> None:
    runtime = FakeRuntime()
    (found,) = bench_runtimes([runtime], picture, warmup=1, runs=2)
    assert tuple(found) == ON_A_CPU
    assert all(result.runs == 2 and result.min_ms > 0 for result in found.values())
    asked = [(what, sets) for _, what, sets in runtime.log]
    assert asked.count(("decode", 64)) == 3
    # its own, end to end, and two to have embeddings to decode and a mask to draw
    assert asked.count(("encode", 1)) == 3 + 3 + 2


def test_runtimes_of_the_same_name_are_kept_apart_and_take_turns(picture: np.ndarray) -> None:
    log: list[tuple[str, str, int]] = []
    ticks: list[None] = []
    runtimes = [FakeRuntime("same", log), FakeRuntime("same", log), FakeRuntime("other", log)]
    found = bench_runtimes(runtimes, picture, warmup=0, runs=2, on_run=lambda: ticks.append(None))
    assert [tuple(result) for result in found] == [ON_A_CPU] * 3
    asked = [name for name, _, sets in log if sets == 64]
    assert [sorted(asked[start : start + 3]) for start in (0, 3)] == [["other", "same", "same"]] * 2
    assert len(ticks) == len(ON_A_CPU) * 2 * 3


def test_a_runtimes_own_synchronise_is_used(picture: np.ndarray) -> None:
    runtime = FakeRuntime()
    waits: list[None] = []
    runtime.synchronise = lambda: waits.append(None)  # type: ignore[attr-defined]
    bench_runtimes([runtime], picture, warmup=0, runs=1)
    assert len(waits) == 2 * len(ON_A_CPU)


def test_a_torch_runtime_on_an_accelerator_is_waited_for(tiny_sam, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sam_edge.models.torch_runtime import TorchRuntime

    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    runtime = TorchRuntime(tiny_sam)
    wait = latency.synchroniser(runtime)
    assert wait is not None
    wait()
    # on the CPU a call that has returned is done
    assert waited == []
    runtime.device = torch.device("cuda")
    wait()
    assert waited == [torch.device("cuda")]
    assert latency.synchroniser(FakeRuntime()) is None
