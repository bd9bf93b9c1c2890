"""Which points a first pass has answered: TinySAM's high-confidence areas (section 3.4), and a stricter reading.

In both a point is answered where some mask that passed the filters is confident: above tau. The rule `logit` is the
paper's: a mask's own logit counts, whatever the mask. What it loses are small things within the masks of larger ones.
The rule `contrast` asks two things more. The mask must be large, for a small one saves few points, and those are where
small things are. And the picture must be flat around the point, for where it is not, there may be something to find:
the logarithm of the local contrast, relative to photos' usual one, is taken off the logit, as log-odds add up. So a
point just outside a mask may count where all is flat, and one well inside may not where there is much to see.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from sam_edge.segment.masks import MASK_THRESHOLD

LARGE = 0.1
"""Least share of the crop that a mask must have under the rule `contrast`."""
SUBDIVISIONS = 8
"""Pixels to the side of a cell that contrast is taken of."""
NOISE = 0.02
"""Contrast that is added everywhere, of pixels in [0, 1]: below it nothing is flatter than flat."""
USUAL = 0.07
"""Geometric mean of both together in COCO's photos, at 32 points per side."""


def large(logits: Float32[np.ndarray, "k h w"], used: tuple[float, float]) -> Bool[np.ndarray, "k"]:
    """Which masks have `LARGE` of the crop; `used` is the share of the logits' height and width that is not padding."""
    height, width = (max(round(side * share), 1) for side, share in zip(logits.shape[1:], used, strict=True))
    return (logits[:, :height, :width] > MASK_THRESHOLD).mean((1, 2), dtype=np.float32) >= LARGE


def log_contrast(crop: UInt8[np.ndarray, "h w 3"], grid: Float[np.ndarray, "p 2"]) -> Float32[np.ndarray, "p"]:
    """Natural logarithm of the contrast around points in [0, 1] x [0, 1], over what is usual in photos.

    Contrast is the standard deviation within a cell of the grid, 1 / sqrt(P) of the crop's sides, averaged over the
    colours.
    """
    cells = max(round(np.sqrt(len(grid))), 1)
    small = Image.fromarray(crop).resize((cells * SUBDIVISIONS, cells * SUBDIVISIONS), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32).reshape(cells, SUBDIVISIONS, cells, SUBDIVISIONS, 3) / 255
    contrast = (pixels.std((1, 3)).mean(-1) + NOISE) / USUAL
    columns, rows = np.minimum((grid * cells).astype(int), cells - 1).T
    return np.log(contrast[rows, columns])
