"""Memory: a fresh process's peak, whatever this process holds, and a model's bytes on disk."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sam_edge.bench.memory import file_bytes, run_alone
from sam_edge.errors import BenchError, CheckpointError


def python(code: str) -> list[str]:
    """A command that runs `code` without site packages."""
    return [sys.executable, "-I", "-S", "-c", code]


def test_peak_sees_a_process_that_allocates_200_mb() -> None:
    found = run_alone(python("held = bytearray(200_000_000); del held"), timeout_s=30).peak_bytes
    assert 200e6 < found < 240e6


def test_peak_does_not_count_what_the_measuring_process_holds() -> None:
    held = np.ones(150_000_000, dtype=np.uint8)
    assert run_alone(python("pass"), timeout_s=30).peak_bytes < 60e6
    assert held[-1] == 1


def test_a_failing_command_raises_with_its_last_line() -> None:
    with pytest.raises(BenchError, match=r"exit code 1: ValueError: no such model$"):
        run_alone(python("print('noise'); raise ValueError('no such model')"), timeout_s=30)


def test_a_killed_command_is_told_from_a_failing_one() -> None:
    with pytest.raises(BenchError, match="signal 9"):
        run_alone(python("import os; os.kill(os.getpid(), 9)"), timeout_s=30)


def test_a_command_that_does_not_exist_raises() -> None:
    with pytest.raises(BenchError, match="no-such-command could not be started"):
        run_alone(["no-such-command"], timeout_s=30)


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    late = tmp_path / "late"
    with pytest.raises(BenchError, match=r"longer than 0\.3 s"):
        run_alone(python(f"import time; time.sleep(1.0); open({str(late)!r}, 'w')"), timeout_s=0.3)
    time.sleep(1.0)
    assert not late.exists()


def write(folder: Path, **sizes: int) -> None:
    """Files of some sizes; `__` in a name stands for a dot."""
    for name, size in sizes.items():
        (folder / name.replace("__", ".")).write_bytes(bytes(size))


def test_a_files_bytes_are_its_size(tmp_path: Path) -> None:
    write(tmp_path, model__pth=17)
    assert file_bytes(tmp_path / "model.pth") == 17


def test_of_a_folder_only_weights_count(tmp_path: Path) -> None:
    write(tmp_path, config__json=1000, model__safetensors=40, README__md=1000)
    assert file_bytes(tmp_path) == 40


def test_external_weights_count_and_the_split_decoder_does_not_count_twice(tmp_path: Path) -> None:
    write(tmp_path, encoder__onnx=1, encoder__onnx__data=20, decoder__onnx=300, predict__onnx=4000)
    write(tmp_path, prepare__onnx=4000, upscale__onnx=4000, model__json=50000)
    assert file_bytes(tmp_path) == 321


def test_a_pattern_picks_one_runtimes_files(tmp_path: Path) -> None:
    write(tmp_path, encoder__onnx=1, decoder__onnx=20, encoder__sm89__engine=300, encoder__sm90__engine=4000)
    assert file_bytes(tmp_path, pattern="*.sm89.engine") == 300
    assert file_bytes(tmp_path, pattern="*.onnx*") == 21


def test_no_weights_raise(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        file_bytes(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        file_bytes(tmp_path / "absent")
