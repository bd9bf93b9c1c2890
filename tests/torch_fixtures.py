"""Small SAMs whose every tensor is random, so that no weight can be left out unnoticed."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig

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


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Models this small only lose by threads, and much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture
def tiny_slim(tiny_config: ModelConfig, make_sam: MakeSam) -> EdgeSam:
    """A small SAM with q, k and v apart."""
    return make_sam(tiny_config.replace(arch="slim_vit"))


@pytest.fixture
def small_slim(tiny_config: ModelConfig, make_sam: MakeSam) -> EdgeSam:
    """The least that all commands take, for tests that export it or quantize it more than once: a block, and a layer
    of the decoder."""
    decoder = replace(tiny_config.decoder, depth=1)
    return make_sam(tiny_config.replace(arch="slim_vit", blocks=tiny_config.blocks[1:], decoder=decoder))
