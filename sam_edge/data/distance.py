"""How far each pixel of a mask lies from its outside, exactly."""

import numpy as np
from jaxtyping import Bool, Int


def squared_distance(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Squared Euclidean distance from each pixel to the nearest one outside the mask, in pixels; 0 outside.

    The picture's border counts as outside: a row or column just beyond it. Exact, along rows and then across them, as
    Felzenszwalb and Huttenlocher (Distance Transforms of Sampled Functions, 2012, section 3) take a dimension each.
    """
    height, width = mask.shape
    columns = np.arange(width, dtype=np.int32)
    rows = np.arange(height, dtype=np.int32)[:, None]
    before = np.maximum.accumulate(np.where(mask, np.int32(-1), columns), axis=1)
    after = np.minimum.accumulate(np.where(mask, np.int32(width), columns)[:, ::-1], axis=1)[:, ::-1]
    in_row = np.minimum(columns - before, after - columns) ** 2
    nearest = np.minimum(in_row, np.minimum(rows + 1, height - rows) ** 2)
    for shift in range(1, (height + 1) // 2):
        # rows that lie closer than this to the border have nothing to gain from others so far away
        core = nearest[shift : height - shift]
        if core.max() <= shift * shift:
            break
        np.minimum(core, in_row[: -2 * shift] + np.int32(shift * shift), out=core)
        np.minimum(core, in_row[2 * shift :] + np.int32(shift * shift), out=core)
    return nearest
