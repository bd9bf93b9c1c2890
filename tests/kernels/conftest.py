"""Devices that run CUDA's kernels."""

import pytest

from sam_edge.kernels.gpu import Device
from sam_edge.runtimes.cuda import cuda_devices
from tests.kernels.emulated import COMPILER, RISING, SHUFFLED, Emulation


@pytest.fixture(
    params=[
        pytest.param(RISING, id="emulated"),
        # a result that depends on who comes first lacks a barrier
        pytest.param(SHUFFLED + 5, id="emulated out of order"),
        *([pytest.param("gpu", marks=pytest.mark.gpu, id="gpu")] if cuda_devices() else []),
    ]
)
def device(request: pytest.FixtureRequest) -> Device:
    """The same sources on the CPU and, where there is one, on a GPU."""
    if request.param == "gpu":
        from sam_edge.kernels.launcher import Gpu

        return Gpu()
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return Emulation(request.param)
