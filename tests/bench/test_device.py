"""sam_edge.bench.device: what a command takes in a fresh process, and under limits."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

from sam_edge.bench import device
from sam_edge.bench.memory import Taken, run_alone
from sam_edge.bench.provenance import model_sha256
from sam_edge.errors import BenchError
from sam_edge.segment.known import shipped_folder


def test_processor_time_and_memory_are_the_command_s_own() -> None:
    busy = "import time\nheld = bytearray(60_000_000)\nwhile time.process_time() < 0.5: pass"
    taken = run_alone([sys.executable, "-c", busy], 60)
    assert 0.5 <= taken.cpu_s < 5
    assert taken.wall_s >= 0.4
    assert 60_000_000 < taken.peak_bytes < 150_000_000


def test_an_address_space_is_a_limit() -> None:
    limits = ("--address-space", str(400 * 2**20))
    run_alone([sys.executable, "-c", "bytearray(10**8)"], 60, limits=limits)
    with pytest.raises(BenchError, match="MemoryError"):
        run_alone([sys.executable, "-c", "bytearray(10**9)"], 60, limits=limits)


def test_a_control_group_limits_its_members_or_is_none() -> None:
    with device.control_group(64 * 2**20) as group:
        if group is None:
            pytest.skip("no control group can be made here")
        with pytest.raises(BenchError):
            run_alone([sys.executable, "-c", "b'1' * 10**9"], 60, limits=("--group", str(group)))
    assert not group.exists()


@pytest.mark.parametrize(("megabytes", "cpu_s", "held"), [(230, 2.0, True), (231, 1.0, False), (100, 2.1, False)])
def test_bars_are_held_or_not(megabytes: float, cpu_s: float, held: bool) -> None:
    row = device._held("it", Taken(int(megabytes * 1e6), 1.0, cpu_s), None, device.PROMPT_CPU_S, device.PROMPT_MB)
    assert row.held is held


def test_a_failing_command_is_told_in_its_row() -> None:
    def fails(*_: object) -> Taken:
        raise BenchError("it was killed")

    assert device._tried("it", fails, "model", (), ()) == device.Row(
        "it", bars="runs", held=False, note="it was killed"
    )


def test_a_model_without_graphs_is_refused(tmp_path: Path) -> None:
    given = argparse.Namespace(models=["vit_b"], source=None, image=None, threads=1, everything=False)
    with pytest.raises(BenchError, match="vit_b is no exported folder"):
        device.measure(given, tmp_path)


def test_rows_are_written_with_the_models_they_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made of a known model is told by that one's weights, too."""
    graphs = shipped_folder("nano-onnx")
    made = shutil.copytree(graphs, tmp_path / "nano-float")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(device, "run_alone", lambda *args, **options: Taken(10**8, 1.0, 0.5))
    out = tmp_path / "device.json"
    device.main(["nano", "nano-float", "--out", str(out), "--json"])
    found = json.loads(out.read_text())
    assert {row["model"] for row in found["rows"]} == {"nano-onnx", "nano-float"}
    assert found["provenance"]["models"] == {
        "nano": model_sha256("nano"),
        "nano-float": model_sha256(made),
        "nano-onnx": model_sha256("nano-onnx"),
    }
    assert found["provenance"]["hardware"]["threads"] == 1
