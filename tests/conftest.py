"""Small SAMs whose every tensor is random, so that no weight can be left out unnoticed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from torch import nn

from sam_edge.cli import main
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import DecoderConfig, ModelConfig, StageConfig, uniform_blocks

MakeSam = Callable[..., EdgeSam]
Scatter = Callable[[nn.Module, int], None]


def _scatter(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = 0.1 * torch.randn(value.shape, generator=generator)
            if name in ("pixel_mean", "pixel_std"):
                # no weights: they belong to the config
                continue
            value.copy_(value * noise.exp() if name.endswith("running_var") else value + noise)


@pytest.fixture
def seconds() -> Callable[[Callable[[], object]], float]:
    """Processor time of some work, which neighbours on the machine change less than the clock."""

    def timed(work: Callable[[], object]) -> float:
        started = process_time()
        work()
        return process_time() - started

    return timed


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose by threads, and much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A ViT SAM of 64 pixels: one windowed block that needs padding, one global block."""
    return ModelConfig(
        arch="vit",
        image_size=64,
        patch_size=8,
        blocks=uniform_blocks(2, 32, 2, (1,), window=3, mlp=40),
        decoder=DecoderConfig(dim=32, mlp=48, mask_channels=8, iou_hidden=24),
    )


@pytest.fixture(scope="session")
def tiny_vit_config() -> ModelConfig:
    """A TinyViT SAM of 64 pixels whose windows all need padding."""
    return ModelConfig(
        arch="tiny_vit",
        image_size=64,
        stages=(
            StageConfig(8, 1, 0, 0, 1),
            StageConfig(16, 1, 2, 3, 2),
            StageConfig(24, 2, 3, 3, 2),
            StageConfig(32, 1, 4, 7, 1),
        ),
        decoder=DecoderConfig(dim=32, mlp=48, mask_channels=8, iou_hidden=24),
    )


@pytest.fixture(scope="session")
def scatter() -> Scatter:
    """Moves every weight and statistic of a module off its initial value, by a seed."""
    return _scatter


@pytest.fixture(scope="session")
def make_sam(scatter: Scatter) -> MakeSam:
    """Builds an `EdgeSam` of a config with seeded random weights everywhere."""

    def make(config: ModelConfig, seed: int = 0) -> EdgeSam:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = EdgeSam(config)
        scatter(model, seed)
        return model

    return make


@pytest.fixture
def tiny_sam(tiny_config: ModelConfig, make_sam: MakeSam) -> EdgeSam:
    """The ViT SAM of `tiny_config`."""
    return make_sam(tiny_config)


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two normalised images of 64 x 64."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A smooth random RGB picture, 50 high and 90 wide, with structure of several sizes."""
    rng = np.random.default_rng(2)
    image = np.zeros((50, 90, 3))
    for cell in (2, 8, 25):
        coarse = rng.uniform(0, 85, (50 // cell + 1, 90 // cell + 1, 3))
        image += coarse.repeat(cell, 0).repeat(cell, 1)[:50, :90]
    image = image.astype(np.uint8)
    image.setflags(write=False)
    return image


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real SA-1B-style data that lies beside the project on some machines."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the project")
    return folder


@pytest.fixture
def tiny_slim(tiny_config: ModelConfig, make_sam: MakeSam) -> EdgeSam:
    """A small SAM with q, k and v apart."""
    return make_sam(tiny_config.replace(arch="slim_vit"))


@pytest.fixture
def sam_edge(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sam-edge", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
