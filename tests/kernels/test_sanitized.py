"""CUDA's kernels in emulation, every access and every undefined operation checked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("libasan.so", "libubsan.so")
TESTS = ("emulation", "preprocess", "masks", "suppression", "attention_half", "unpack")
FAULTS = {
    "shared": ("heap-buffer-overflow", "DYNAMIC_SHARED(int, a); a[threadIdx.x + 1] = 1; x[threadIdx.x] = a[0];"),
    "beyond": ("heap-buffer-overflow", "if (x[8] == 77) x[0] = 1;"),
    "aligned": ("misaligned address", "x[0] = int(reinterpret_cast<const uint4 *>(x + 1 + threadIdx.x * 4)->y);"),
    "shift": ("shift exponent", "x[threadIdx.x] = 1 << (x[threadIdx.x] + 32);"),
    "local": ("index 4 out of bounds", "volatile int a[4] = {}; a[threadIdx.x + 1] = 1; x[threadIdx.x] = a[0];"),
}
"""What a kernel must not do, and what is said of it."""
RUN = """
import sys
import numpy as np
from sam_edge.kernels.gpu import CSRC
from tests.kernels.emulated import Emulation, library, run

text = '#include "device.cuh"\\nextern "C" __global__ void faulty(int *x) {' + sys.argv[1] + "}\\nEMULATED(faulty)"
device = Emulation()
run(library(text, CSRC), "faulty", (1, 1, 1), 4, [device.zeros((8,), np.int32)], 16)
print("nothing was found")
"""


def libraries() -> list[str]:
    """GCC's sanitizers, where they are installed."""
    if shutil.which("g++") is None:
        return []
    paths = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in LIBRARIES
    ]
    return paths if all(Path(path).is_absolute() for path in paths) else []


def sanitized(*command: str) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizers loaded before everything else."""
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "SAM_EDGE_EMULATION": "sanitized",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not libraries(), reason="GCC and its sanitizers are not here")]


@pytest.mark.parametrize("tests", TESTS)
def test_no_kernel_does_what_is_undefined(tests: str) -> None:
    done = sanitized("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"tests/kernels/test_{tests}.py")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_undefined_is_found(fault: str) -> None:
    says, body = FAULTS[fault]
    done = sanitized("-c", RUN, body)
    assert done.returncode != 0
    assert says in done.stderr
    assert "nothing was found" not in done.stdout
