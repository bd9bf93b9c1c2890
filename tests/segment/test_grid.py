"""sam_edge.segment.grid: which points, and which of them first."""

import numpy as np
import pytest

from sam_edge.errors import EverythingError
from sam_edge.segment.grid import first_pass, layer_grids, regular_grid


def test_regular_grids_are_segment_anything_s_to_the_bit(amg):
    for side in range(1, 101):
        got, wanted = regular_grid(side), amg.build_point_grid(side)
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 16, 30, 31, 32, 33, 64])
def test_the_first_pass_is_a_quarter_of_the_points_per_side_evenly_spread(side):
    grid = regular_grid(side)
    first = first_pass(grid)
    per_side = max(round(side / 4), 1)
    assert len(first) == per_side**2
    assert (np.diff(first) > 0).all()
    # one in each cell, and no farther from its centre than half a step
    cells = np.floor(grid[first] * per_side)
    assert len(np.unique(cells, axis=0)) == per_side**2
    assert np.abs(grid[first] - (cells + 0.5) / per_side).max() <= 0.5 / side + 1e-9


def test_any_points_have_a_first_pass():
    rng = np.random.default_rng(0)
    for count in (1, 5, 100, 700):
        grid = rng.uniform(0, 1, (count, 2))
        first = first_pass(grid)
        assert 1 <= len(first) <= max(round(np.sqrt(count) / 4), 1) ** 2
        assert len(set(first.tolist())) == len(first)
    corners = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert len(first_pass(corners)) == 1


def test_layers_have_grids_of_fewer_points_or_one_s_own():
    sides = [int(np.sqrt(len(grid))) for grid in layer_grids(8, 2, 2, None)]
    assert sides == [8, 4, 2]
    own = layer_grids(None, 1, 1, [np.array([[0.5, 0.5]]), [[0.1, 0.2], [0.3, 0.4]]])
    assert [len(grid) for grid in own] == [1, 2]


def test_layers_grids_are_segment_anything_s(amg):
    for side, layers, downscale in ((8, 2, 2), (32, 0, 1), (7, 1, 3), (9, 3, 1)):
        wanted = amg.build_all_layer_point_grids(side, layers, downscale)
        for got, theirs in zip(layer_grids(side, layers, downscale, None), wanted, strict=True):
            np.testing.assert_array_equal(got, theirs)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((8, 0, 1, [np.zeros((1, 2))]), "not both"),
        ((None, 0, 1, None), "not both"),
        ((0, 0, 1, None), "points_per_side"),
        ((3, 2, 2, None), "at least 4"),
        ((8, -1, 1, None), "crop_n_layers"),
        ((8, 0, 0, None), "downscale"),
        ((None, 1, 1, [np.zeros((1, 2))]), "2 layers"),
        ((None, 0, 1, [np.zeros((0, 2))]), "N at least 1"),
        ((None, 0, 1, [np.zeros((3, 3))]), r"N x 2"),
        ((None, 0, 1, [np.full((3, 2), 1.5)]), r"\[0, 1\]"),
        ((None, 0, 1, [np.full((3, 2), np.nan)]), r"\[0, 1\]"),
    ],
)
def test_impossible_grids_are_refused_in_one_line(arguments, hint):
    with pytest.raises(EverythingError, match=hint) as caught:
        layer_grids(*arguments)
    assert "\n" not in str(caught.value)
