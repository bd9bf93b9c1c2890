"""sam_edge.runtimes.threads: a thread per core, or as many as OMP_NUM_THREADS says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam_edge.runtimes import threads
from sam_edge.runtimes.threads import cpu_threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Six processors of which this process may use five; 0 and 3 share a core, as do 1 and 4, and 2 and 5."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(threads, "Path", lambda path: tmp_path / path.lstrip("/"))
    folder = tmp_path / "sys/devices/system/cpu"
    for cpu in range(6):
        (folder / f"cpu{cpu}/topology").mkdir(parents=True)
        (folder / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{cpu % 3},{cpu % 3 + 3}\n")
    return folder


def test_processors_that_share_a_core_count_once(machine: Path) -> None:
    assert cpu_threads() == 3


def test_where_the_system_tells_of_no_cores_every_usable_processor_counts(machine: Path) -> None:
    for cpu in range(6):
        (machine / f"cpu{cpu}/topology/thread_siblings_list").unlink()
    assert cpu_threads() == 5


def test_a_system_without_affinity_counts_all_its_processors(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, wanted in ((6, 3), (2, 2), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cpu_threads() == wanted


def test_omp_num_threads_counts_and_what_is_no_number_of_threads_does_not(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, wanted in (("1", 1), ("7", 7), ("0", 3), ("", 3), ("-2", 3), ("many", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert cpu_threads() == wanted


def test_torch_hears_of_omp_num_threads_too() -> None:
    """A race between runtimes is between equals."""
    pytest.importorskip("torch", reason="torch is not installed")
    script = "import sam_edge.runtimes.threads as t, torch; print(torch.get_num_threads(), t.cpu_threads())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
