"""The kernels on ARM64, cross-compiled and emulated, compute what x86's compute."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from tests.kernels.test_attention import SAM, exact, operands
from tests.runtimes.arm64 import PROJECT, Emulated, UnavailableError, emulated

pytestmark = pytest.mark.slow

COMPILER = "aarch64-linux-gnu-g++"
TIMEOUT_S = 1800
ALONE = """
import sys
import numpy as np
from sam_edge.kernels.attention import attention
given = np.load(sys.argv[1])
arrays = [given[name] for name in ("q", "k", "v", "rel_pos_h", "rel_pos_w")]
np.save(sys.argv[2], attention(*arrays, float(given["scale"]), threads=2))
"""
ENCODED = """
import sys
import numpy as np
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
runtime = OnnxRuntime(sys.argv[1], threads=2)
assert runtime.with_kernels == ("encoder",)
np.save(sys.argv[3], runtime.encode(np.load(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    try:
        return emulated(tmp_path_factory.mktemp("arm64"))
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for ARM64."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    file = tmp_path_factory.mktemp("built") / "libsam_edge.so"
    sources = sorted((PROJECT / "kernels" / "csrc").glob("*.cpp"))
    options = [
        "-std=c++17",
        "-O3",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fvisibility=hidden",
        "-pthread",
        "-fPIC",
        "-shared",
    ]
    subprocess.run([COMPILER, *options, *sources, "-o", file], check=True)
    return file


@pytest.fixture(autouse=True)
def wanted(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM_EDGE_KERNELS", os.fspath(kernels))


@pytest.mark.parametrize("sizes", SAM.values(), ids=SAM)
def test_attention_is_the_reference(sizes: tuple[int, ...], device: Emulated, tmp_path: Path) -> None:
    arrays, scale = operands(*sizes, spread=0.7), sizes[4] ** -0.5
    given, found = tmp_path / "given.npz", tmp_path / "found.npy"
    np.savez(given, **dict(zip(("q", "k", "v", "rel_pos_h", "rel_pos_w"), arrays, strict=True)), scale=scale)
    device.run("-c", ALONE, given, found, timeout_s=TIMEOUT_S)
    step = 7 if sizes[2] == 64 else 1
    error = np.abs(np.load(found)[:, :, ::step] - exact(arrays, scale, step)).max()
    assert error < 5e-6 * np.abs(arrays[2]).max()


def test_onnx_runtime_takes_it_there_too(fp32, device: Emulated, tmp_path: Path) -> None:
    side = fp32.model.config.image_size
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    given, found = tmp_path / "pixels.npy", tmp_path / "found.npy"
    np.save(given, pixels)
    device.run("-c", ENCODED, fp32.path, given, found, timeout_s=TIMEOUT_S)
    here = OnnxRuntime(fp32.path, threads=1, kernels=False).encode(pixels)
    assert np.abs(np.load(found) - here).max() < 1e-5 * np.abs(here).max()
