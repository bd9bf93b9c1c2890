"""Masks read by Label Studio's converter and by datumaro, CVAT's own, each from the package index."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from sam_edge.data.mask_files import write_mask_files
from tests.data.test_mask_files import picture, some_masks
from tests.tools.environments import environment

pytestmark = pytest.mark.slow
PACKAGES = {"label_studio": ("label-studio-sdk", "opencv-python-headless"), "cvat": ("datumaro",)}


@pytest.mark.parametrize("tool", PACKAGES)
def test_a_tool_reads_the_masks_to_the_pixel(tool: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    python = environment(tool, PACKAGES[tool], (), request.config.cache.mkdir("tools"))
    masks = some_masks()
    write_mask_files(tmp_path / "masks", tool.replace("_", "-"), [picture("a.jpg", masks)])
    script = Path(__file__).with_name("read_masks.py")
    command = [python, script, tool, tmp_path / "masks", tmp_path / "out.npz"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["masks"], np.stack(masks[:-1]))
