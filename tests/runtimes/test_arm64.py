"""On ARM64 the device half, installed from wheels and emulated, finds the masks that it finds on x86."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_edge.commands.device.segment import EverythingOptions, ImagePrompts, Segmenter
from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.matching import agreement
from sam_edge.segment.runtime import Runtime
from tests.runtimes.arm64 import PROJECT, Emulated, UnavailableError, emulated

pytestmark = pytest.mark.slow

MODEL = "nano"
EVERYTHING = EverythingOptions("hierarchical", points_per_side=4)
"""Few points: emulated, each takes seconds."""
TIMEOUT_S = 3600
KINDS = ("point", "box", "everything")
Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A file, and what is asked of it."""

    file: Path
    point: tuple[int, int]
    box: tuple[int, int, int, int]

    def prompts(self, kind: str) -> ImagePrompts:
        """One of the three ways to ask."""
        return ImagePrompts((((*self.point, 1),) if kind == "point" else ()), self.box if kind == "box" else None)

    def options(self, kind: str) -> list[str]:
        """The same on a command line."""
        if kind == "everything":
            return [
                "--everything",
                "--strategy",
                EVERYTHING.strategy,
                "--points-per-side",
                str(EVERYTHING.points_per_side),
            ]
        return [f"--{kind}", ",".join(map(str, self.point if kind == "point" else self.box))]


PHOTOS = (
    Picture(Path("dogcat", "sa_2130000.jpg"), (185, 140), (165, 55, 245, 217)),
    Picture(Path("davis", "sa_2040000.jpg"), (200, 190), (83, 41, 313, 228)),
)
"""Dogs in a row, and a swan on water, in the data beside the project."""
DISCS = (
    Picture(Path("first.png"), (90, 80), (50, 40, 130, 120)),
    Picture(Path("second.png"), (200, 130), (160, 90, 240, 170)),
)
"""What is asked where there are no photos: discs of 40 pixels' radius around the points."""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    pytest.importorskip("openvino", reason="openvino is not installed")
    try:
        return emulated(tmp_path_factory.mktemp("arm64"))
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    data = PROJECT.parent / "shared" / "data"
    if all((data / photo.file).is_file() for photo in PHOTOS):
        return [Picture(data / photo.file, photo.point, photo.box) for photo in PHOTOS]
    folder = tmp_path_factory.mktemp("pictures")
    made = [Picture(folder / disc.file, disc.point, disc.box) for disc in DISCS]
    for seed, picture in enumerate(made):
        Image.fromarray(_drawn(picture.point, seed)).save(picture.file)
    return made


def _drawn(middle: tuple[int, int], seed: int) -> np.ndarray:
    """A bright disc and a darker square on a noisy slope of grey, 220 high and 300 wide."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:220, :300]
    image = np.repeat((60 + x / 6)[..., None], 3, 2)
    image[(x - middle[0]) ** 2 + (y - middle[1]) ** 2 < 40**2] = rng.uniform(180, 240, 3)
    image[150:200, 20:70] = rng.uniform(0, 50, 3)
    return (image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def on_x86(pictures: list[Picture], device: Emulated) -> dict[str, dict[tuple[int, str], Records]]:
    """Masks of each picture and kind by both runtimes of this machine, in this process."""
    folder = shipped_graphs(MODEL)
    assert folder is not None, f"{MODEL} does not ship as graphs"
    runtimes = {name: open_runtime(folder, name, "cpu") for name in ("onnxruntime", "openvino")}
    return {
        name: {
            (index, kind): _records(runtime, picture, kind) for index, picture in enumerate(pictures) for kind in KINDS
        }
        for name, runtime in runtimes.items()
    }


def _records(runtime: Runtime, picture: Picture, kind: str) -> Records:
    segmenter = Segmenter(runtime, picture.prompts(kind), EVERYTHING)
    return segmenter.records(segmenter.read(picture.file))


@pytest.fixture(scope="module")
def on_arm64(
    pictures: list[Picture], device: Emulated, on_x86: dict, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], Records]:
    """The same by the command line, emulated."""
    out = tmp_path_factory.mktemp("masks")

    def masks(asked: tuple[int, str]) -> Records:
        index, kind = asked
        picture, folder = pictures[index], out / f"{index}-{kind}"
        command = ("-m", "sam_edge", "segment", MODEL, picture.file, *picture.options(kind), "--out", folder)
        device.run(*command, timeout_s=TIMEOUT_S)
        return json.loads((folder / "masks.json").read_text())["annotations"]

    asked = list(on_x86["onnxruntime"])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(asked, pool.map(masks, asked), strict=True))


def test_a_device_has_onnx_runtime_and_no_torch(device: Emulated) -> None:
    found = json.loads(device.run("-m", "sam_edge", "runtimes", "--json", timeout_s=TIMEOUT_S))
    assert {entry["name"] for entry in found["runtimes"] if entry["here"]} == {"onnxruntime"}


def test_masks_differ_from_those_of_x86_no_more_than_its_runtimes_differ(on_x86: dict, on_arm64: dict) -> None:
    wanted = on_x86["onnxruntime"]
    assert all(sum(record["area"] for record in records) for records in wanted.values())
    means = {}
    for name, found in {"ARM64": on_arm64, "OpenVINO": on_x86["openvino"]}.items():
        each = {asked: agreement(records, found[asked]) for asked, records in wanted.items()}
        means[name] = np.mean(list(each.values()))
        print(
            f"\n{name} with x86's ONNX Runtime: {means[name]:.5f}",
            {f"{i} {k}": f"{v:.5f}" for (i, k), v in each.items()},
        )
    assert means["ARM64"] >= means["OpenVINO"]
