"""References for the tests of sam_edge.segment."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam_edge.segment.frame import Frame

AtFullSize = Callable[[np.ndarray, Frame], np.ndarray]


@pytest.fixture(scope="session")
def at_full_size() -> AtFullSize:
    """Logits N x h x w at the picture's size by torch: the two interpolations of segment-anything's `Sam`."""

    def interpolate(low_res: np.ndarray, frame: Frame) -> np.ndarray:
        square = (frame.image_size, frame.image_size)
        padded = F.interpolate(torch.from_numpy(low_res)[None], square, mode="bilinear", align_corners=False)
        height, width = frame.input_size
        unpadded = padded[..., :height, :width]
        return F.interpolate(unpadded, frame.original_size, mode="bilinear", align_corners=False)[0].numpy()

    return interpolate
