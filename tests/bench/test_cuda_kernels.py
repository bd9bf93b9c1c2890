"""sam_edge.bench.cuda_kernels: launches alone are timed, and set beside a copy; on a GPU they are timed for real."""

import csv
from pathlib import Path

import numpy as np
import pytest

from sam_edge.bench import cuda_kernels
from sam_edge.bench.cuda_kernels import Case, Noted, cases, copy_rate, main, measure, write
from sam_edge.kernels import launcher, unpack
from sam_edge.kernels.driver import BindingsDriver
from sam_edge.kernels.launcher import Gpu
from sam_edge.runtimes.cuda import cuda_devices
from tests.cuda_double import CUBIN, Bindings, Machine
from tests.kernels.emulated import COMPILER

DOUBLES_MS = 1.5
"""Between any two events of the double."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A double, whose clock is of no use."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(launcher, "cubin_of", lambda source, target: CUBIN + source.label.encode())
    monkeypatch.setattr(cuda_kernels, "WARM_UP", 0)
    monkeypatch.setattr(cuda_kernels, "TURNS", 1)
    return Gpu(BindingsDriver(Bindings(Machine())))


def test_launches_are_noted_and_repeated_alone(gpu: Gpu) -> None:
    noted = Noted(gpu)
    packed = unpack.pack(np.arange(-8, 8, dtype=np.int8))
    found = unpack.unpack(noted, noted.put(packed), 16)
    assert [given[1] for given in noted.launches] == ["unpack_int8"]
    np.testing.assert_array_equal(gpu.get(found), np.arange(-8, 8))


def test_a_row_sets_bytes_and_time_beside_a_copy(gpu: Gpu, tmp_path: Path) -> None:
    rate = copy_rate(gpu, 4096)
    assert rate == pytest.approx(2 * 4096 / DOUBLES_MS * 1000)
    packed = unpack.pack(np.zeros(64, np.int8))
    case = Case("unpack", "64", unpack.work(64, 1).bytes, lambda d: unpack.unpack(d, d.put(packed), 64))
    (row,) = rows = measure(gpu, [case], rate)
    assert row.bytes == 48 + 64
    assert row.milliseconds == DOUBLES_MS
    assert row.gigabytes_per_s == pytest.approx(112 / 1.5e-3 / 1e9)
    assert row.share_of_copy == pytest.approx(112 / 8192)
    write(rows, tmp_path / "rows.csv")
    (read,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert float(read["share_of_copy"]) == pytest.approx(row.share_of_copy)


def test_every_case_runs(gpu: Gpu) -> None:
    """Small ones, for they are launched in emulation."""
    rows = measure(gpu, cases(0.008), 1e9)
    assert {row.kernel for row in rows} == {"preprocess", "masks", "suppression", "attention", "unpack"}
    assert all(row.milliseconds > 0 and row.bytes > 0 for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_kernels_are_timed_on_the_gpu(tmp_path: Path) -> None:
    """With -s the table is seen."""
    rows = main(["--out", str(Path("benchmarks"))])
    assert len(rows) == len(cases())
    # nothing is faster than its memory, but for what stays in the cache
    assert all(0 < row.milliseconds < 1000 for row in rows)
