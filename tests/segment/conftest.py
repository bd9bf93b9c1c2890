"""References for the tests of sam_edge.segment, which a device has not: tests that want one are skipped there."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from sam_edge.segment.frame import Frame

AtFullSize = Callable[[np.ndarray, Frame], np.ndarray]


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    """torch."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def amg() -> ModuleType:
    """What segment-anything's own everything mode is made of."""
    return pytest.importorskip("segment_anything.utils.amg")


@pytest.fixture(scope="session")
def resize_longest_side() -> type:
    """segment-anything's transform of pictures and coordinates."""
    return pytest.importorskip("segment_anything.utils.transforms").ResizeLongestSide


@pytest.fixture(scope="session")
def at_full_size(torch: ModuleType) -> AtFullSize:
    """Logits N x h x w at the picture's size by torch: the two interpolations of segment-anything's `Sam`."""

    def interpolate(low_res: np.ndarray, frame: Frame) -> np.ndarray:
        resize, square = torch.nn.functional.interpolate, (frame.image_size, frame.image_size)
        padded = resize(torch.from_numpy(low_res)[None], square, mode="bilinear", align_corners=False)
        height, width = frame.input_size
        unpadded = padded[..., :height, :width]
        return resize(unpadded, frame.original_size, mode="bilinear", align_corners=False)[0].numpy()

    return interpolate
