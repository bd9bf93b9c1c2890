"""Where everything mode asks: grids of points, and which of them come first.

Points are normalised to [0, 1] x [0, 1], as (x, y).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from sam_edge.errors import EverythingError

FIRST_PASS = 4
"""The first pass of the hierarchical strategy takes one point of so many per side (TinySAM, section 3.4)."""


def layer_grids(
    points_per_side: int | None,
    layers: int,
    downscale: int,
    point_grids: Sequence[Float[np.ndarray, "n 2"]] | None,
) -> list[Float[np.ndarray, "n 2"]]:
    """The points of the whole picture and of each layer of crops: regular ones, or the caller's own.

    Raises:
        EverythingError: both given or neither, too few grids, or a grid that is empty or outside [0, 1].
    """
    if (points_per_side is None) == (point_grids is None):
        raise EverythingError("give points_per_side or point_grids, and not both.")
    if layers < 0 or downscale < 1:
        raise EverythingError(
            f"crop_n_layers must be at least 0 and crop_n_points_downscale_factor at least 1, "
            f"got {layers} and {downscale}."
        )
    if points_per_side is not None:
        if points_per_side < downscale**layers:
            raise EverythingError(
                f"points_per_side must be at least {downscale**layers} here, to leave a point per side in each crop; "
                f"got {points_per_side}."
            )
        return [regular_grid(points_per_side // downscale**layer) for layer in range(layers + 1)]
    assert point_grids is not None
    grids = [np.asarray(grid, np.float64) for grid in point_grids]
    if len(grids) <= layers:
        raise EverythingError(f"point_grids must hold a grid for each of {layers + 1} layers, got {len(grids)}.")
    for grid in grids:
        # written so that NaN is refused, too
        if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid) or not ((grid >= 0) & (grid <= 1)).all():
            raise EverythingError(
                f"each of point_grids must be N x 2 points (x, y) in [0, 1] with N at least 1, got shape {grid.shape}."
            )
    return grids


def regular_grid(points_per_side: int) -> Float[np.ndarray, "n 2"]:
    """The centres of a square's equal cells, row by row (segment-anything's `build_point_grid`)."""
    ticks = np.linspace(1 / (2 * points_per_side), 1 - 1 / (2 * points_per_side), points_per_side)
    return np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)


def first_pass(grid: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, "m"]:
    """Indices of the points to ask first, in rising order: about a quarter of them per side, evenly spread.

    They are points of the grid itself, the nearest to the centre of each cell of a coarse one, so that none is asked
    twice and all of it works for grids of any number and placement.
    """
    side = max(round(np.sqrt(len(grid)) / FIRST_PASS), 1)
    cells = np.minimum((grid * side).astype(int), side - 1)
    distance = np.abs(grid * side - cells - 0.5).max(1)
    cell = cells[:, 1] * side + cells[:, 0]
    # nearest first within each cell, the earlier point where two are as near
    order = np.lexsort((np.arange(len(grid)), distance.round(9), cell))
    _, nearest = np.unique(cell[order], return_index=True)
    return np.sort(order[nearest])
