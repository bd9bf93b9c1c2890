"""Hardware: plain values, and file names made of them."""

import json
import platform
import re

import pytest

from sam_edge.bench.hardware import hardware, lines, slug
from sam_edge.runtimes.threads import cpu_threads


def test_hardware_is_plain_json_of_this_machine() -> None:
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["threads"] == cpu_threads()
    assert found["cores"] >= 1


def test_the_gpu_and_its_library_are_torch_s() -> None:
    torch, found = pytest.importorskip("torch"), hardware()
    assert found["gpu"] == (torch.cuda.get_device_name(0) if torch.cuda.is_available() else None)
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_threads_are_those_asked_for_or_no_more_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in (1, 3, 48):
        monkeypatch.setenv("OMP_NUM_THREADS", str(asked))
        assert hardware()["threads"] == asked
    for nothing in ("", "0", "2,1", "-1", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        found = hardware()
        assert 1 <= found["threads"] <= found["cores"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert hardware()["threads"] == found["threads"]


def test_a_slug_names_processor_threads_and_versions() -> None:
    machine = {
        "cpu": "Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz",
        "threads": 4,
        "gpu": None,
        "versions": {"torch": "2.9.1+cu130", "onnxruntime": "1.23.0"},
    }
    assert slug(machine) == "intel-core-i7-8650u-4t_torch-2.9.1_onnxruntime-1.23.0"
    assert slug(machine | {"gpu": "NVIDIA H200"}).startswith("nvidia-h200_intel-core-i7-8650u-4t_")


def test_a_slug_is_a_safe_file_name_even_of_an_unknown_machine() -> None:
    assert slug({"cpu": None, "versions": {}}) == "unknown"
    name = slug({"cpu": "Ärm/.. weird\\chip " * 40, "gpu": "a:b", "versions": {"torch": "2"}})
    assert re.fullmatch(r"[a-z0-9._-]{1,200}", name)


def test_lines_leave_out_what_is_unknown() -> None:
    found = dict(lines({"cpu": "A76", "gpu": None, "ram_bytes": 8 * 2**30, "versions": {"torch": "2.9"}}))
    assert found == {"CPU": "A76", "Memory": "8.0 GiB", "torch": "2.9"}
