"""sam_edge.segment.scaling: the same logits as two interpolations give, whole, in tiles and at points."""

import numpy as np
import pytest

from sam_edge.segment.frame import Frame
from sam_edge.segment.masks import mask_of
from sam_edge.segment.scaling import AxisScaling, Scaling, interpolated

SHAPES = [(64, 64), (50, 90), (91, 33), (10, 100), (1, 40), (40, 1), (640, 481), (7, 9)]
# up-scaled, down-scaled, and so long that one side keeps a single pixel
MORE_SHAPES = [*SHAPES, (1, 1), (2, 3), (203, 20), (37, 63), (1, 1000), (1000, 3), (1081, 1921)]
CLOSE = 1e-4
"""How near to the threshold rounding may decide."""


def noise(count: int, side: int) -> np.ndarray:
    """Low-resolution logits."""
    return np.random.default_rng(side).normal(size=(count, side, side)).astype(np.float32)


def assembled(scaling: Scaling, logits: np.ndarray) -> np.ndarray:
    """One mask's logits at the picture's size, put together from tiles."""
    rows, columns = scaling.rows, scaling.columns
    bands = []
    for i, top in enumerate(rows.starts):
        band = rows.weights[i] @ logits[top : top + rows.weights.shape[2]]
        tiles = [
            band[:, left : left + columns.weights.shape[2]] @ columns.weights[j].T
            for j, left in enumerate(columns.starts)
        ]
        bands.append(np.concatenate(tiles, 1))
    return np.concatenate(bands)


@pytest.mark.parametrize("size", [64, 256], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_make_up_the_two_interpolations(at_full_size, shape, size):
    frame = Frame.of(*shape, size)
    logits = noise(1, size // 4)
    scaling = Scaling.of(frame, size // 4)
    whole = assembled(scaling, logits[0])
    assert scaling.size == shape
    wanted = at_full_size(logits, frame)[0]
    np.testing.assert_allclose(whole[: shape[0], : shape[1]], wanted, rtol=1e-5, atol=1e-5)
    # what lies beyond the picture passes no threshold
    assert np.isnan(whole[shape[0] :, : shape[1]]).all()
    assert np.isnan(whole[:, shape[1] :]).all()
    assert all(axis.tile in (8, 16, 32) or axis.tile % 64 == 0 for axis in (scaling.rows, scaling.columns))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_points_are_pixels_of_the_two_interpolations(at_full_size, shape):
    frame = Frame.of(*shape, 64)
    logits = noise(3, 32)
    rng = np.random.default_rng(1)
    ys, xs = (rng.integers(0, side, 20) for side in shape)
    got = Scaling.of(frame, 32).at(logits, ys, xs)
    np.testing.assert_allclose(got, at_full_size(logits, frame)[:, ys, xs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", MORE_SHAPES, ids=str)
def test_the_whole_is_what_segment_anything_makes(tiny_sam, torch, shape):
    frame, logits = Frame.of(*shape, 64), noise(6, 32)
    wanted = tiny_sam.postprocess_masks(torch.from_numpy(logits)[None], frame.input_size, frame.original_size)[0]
    scaling = Scaling.of(frame, 32)
    got = np.stack([scaling.full(one) for one in logits])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "cells"), [(64, 16), (64, 32), (1024, 256)], ids=str)
@pytest.mark.parametrize("shape", MORE_SHAPES, ids=str)
def test_the_whole_and_its_pixels_are_those_of_the_two_interpolations(at_full_size, shape, size, cells):
    frame = Frame.of(*shape, size)
    scaling = Scaling.of(frame, cells)
    (logits,) = noise(1, cells)
    (wanted,) = at_full_size(logits[None], frame)
    full = scaling.full(logits)
    np.testing.assert_allclose(full, wanted, rtol=0, atol=CLOSE)
    for mask in (full > 0, mask_of(logits, scaling)):
        assert mask.shape == shape
        assert np.abs(wanted[mask != (wanted > 0)]).max(initial=0) < CLOSE


def test_any_picture_s_logits_are_those_of_the_two_interpolations(at_full_size):
    rng = np.random.default_rng(2)
    for _ in range(60):
        # as many small pictures as large ones
        shape = tuple(int(side) for side in np.exp(rng.uniform(0, np.log(800), 2)))
        size, cells = ((64, 16), (64, 32), (256, 64))[rng.integers(3)]
        frame, (logits,) = Frame.of(*shape, size), noise(1, cells)
        scaling = Scaling.of(frame, cells)
        (wanted,), got = at_full_size(logits[None], frame), scaling.full(logits)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=CLOSE, err_msg=f"{shape} {size} {cells}")
        for mask in (got > 0, mask_of(logits, scaling)):
            assert np.abs(wanted[mask != (wanted > 0)]).max(initial=0) < CLOSE


@pytest.mark.parametrize(("cells", "square"), [(16, 64), (32, 64), (64, 256), (256, 1024)])
def test_coefficients_are_torch_s_interpolations_of_the_identity(torch, cells, square):
    rng = np.random.default_rng(cells)
    ends = [(1, 1), (1, 40), (square, 1), (square, square), (square, 2 * square + 1), (square - 1, 7)]
    some = zip(rng.integers(1, square + 1, 30).tolist(), rng.integers(1, 3000, 30).tolist(), strict=True)
    for used, length in [*ends, *some]:
        axis = AxisScaling.of(cells, square, used, length)
        got = np.zeros((length, cells), np.float32)
        np.put_along_axis(got, axis.tap_starts[:, None] + np.arange(axis.taps.shape[1]), axis.taps, 1)
        identity = torch.eye(cells)[None]
        once = torch.nn.functional.interpolate(identity, square, mode="linear", align_corners=False)[..., :used]
        wanted = torch.nn.functional.interpolate(once, length, mode="linear", align_corners=False)[0].T.numpy()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6, err_msg=f"{used} {length}")
        # applied, they are what a product with the whole matrix gives
        values = rng.normal(size=(cells, 3)).astype(np.float32)
        np.testing.assert_allclose(axis.applied(values), got @ values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cells", [1, 2, 5, 64])
def test_one_interpolation_is_torch_s(torch, cells):
    values = np.random.default_rng(cells).normal(size=(cells, 4)).astype(np.float32)
    for length in (1, 2, 3, cells, 2 * cells + 1, 777):
        given = torch.from_numpy(values).T[None]
        wanted = torch.nn.functional.interpolate(given, length, mode="linear", align_corners=False)[0].T.numpy()
        np.testing.assert_allclose(interpolated(values, length), wanted, rtol=1e-5, atol=1e-5)


def test_pixels_lie_between_the_logits_that_they_are_made_of():
    scaling = Scaling.of(Frame.of(123, 200, 64), 16)
    for axis in (scaling.rows, scaling.columns):
        inside = axis.weights[~np.isnan(axis.weights).any(2)]
        assert (inside >= 0).all()
        np.testing.assert_allclose(inside.sum(1), np.ones(axis.length), rtol=1.3e-6, atol=1e-5)
