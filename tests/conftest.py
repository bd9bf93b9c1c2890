"""What all tests share: pictures, and a command line in this process.

Where torch is not installed, tests that import it or the workshop are left out, and the rest is what a device has.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from sam_edge.cli import main
from sam_edge.segment.config import BackboneConfig, DecoderConfig, ModelConfig, StageConfig, uniform_blocks

HAS_TORCH = find_spec("torch") is not None
pytest_plugins = ["tests.exported", *(["tests.torch_fixtures"] if HAS_TORCH else [])]
WORKSHOP = (
    "torch",
    "torchvision",
    "segment_anything",
    "onnx",
    "safetensors",
    "matplotlib",
    "cv2",
    "hypothesis_torch",
    "tests.torch_fixtures",
    "sam_edge.scenes",
    "sam_edge.models",
    "sam_edge.training",
    "sam_edge.compress",
    "sam_edge.quantize",
    "sam_edge.export",
    "sam_edge.commands.workshop",
    "sam_edge.studies",
    "sam_edge.hub",
    "sam_edge.bench.integers",
    "sam_edge.bench.plots",
    "sam_edge.bench.report",
)
"""What a device does not have."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot be imported without torch."""
    if HAS_TORCH or collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    names = set()
    for node in ast.parse(collection_path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return any(name == part or name.startswith((f"{part}.", f"{part}_")) for name in names for part in WORKSHOP) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose models are made with torch, where it is not installed."""
    for item in items if not HAS_TORCH else ():
        if TORCH_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason="torch is not installed"))


TORCH_FIXTURES = {"make_sam", "scatter", "tiny_sam", "tiny_slim", "small_slim", "pixels"}


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


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
def timm_config() -> ModelConfig:
    """A SAM of 64 pixels behind a backbone of timm's that pads as TensorFlow does."""
    return ModelConfig(
        arch="timm",
        image_size=64,
        patch_size=16,
        backbone=BackboneConfig("tf_mobilenetv3_small_minimal_100", width=24),
        decoder=DecoderConfig(dim=32, depth=1, mlp=48, mask_channels=8, iou_hidden=24),
        pixel_mean=(127.5, 127.5, 127.5),
        pixel_std=(127.5, 127.5, 127.5),
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
def mobile_sam_config(tiny_vit_config: ModelConfig) -> ModelConfig:
    """The same with MobileSAM's windows, by which its weights tell its size."""
    stages = zip(tiny_vit_config.stages, (0, 7, 14, 7), strict=True)
    return tiny_vit_config.replace(
        image_size=1024, stages=tuple(replace(stage, window=window) for stage, window in stages)
    )


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
