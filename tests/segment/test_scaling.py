"""sam_edge.segment.scaling: the same logits as two interpolations give, in tiles and at points."""

import pytest
import torch

from sam_edge.segment.frame import Frame
from sam_edge.segment.scaling import Scaling

SHAPES = [(64, 64), (50, 90), (91, 33), (10, 100), (1, 40), (40, 1), (640, 481), (7, 9)]


def noise(count: int, side: int) -> torch.Tensor:
    """Low-resolution logits."""
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(side))


def assembled(scaling: Scaling, logits: torch.Tensor) -> torch.Tensor:
    """One mask's logits at the picture's size, put together from tiles."""
    rows, columns = scaling.rows, scaling.columns
    bands = []
    for i, top in enumerate(rows.starts):
        band = rows.weights[i] @ logits[top : top + rows.weights.shape[2]]
        tiles = [
            band[:, left : left + columns.weights.shape[2]] @ columns.weights[j].T
            for j, left in enumerate(columns.starts)
        ]
        bands.append(torch.cat(tiles, 1))
    return torch.cat(bands)


@pytest.mark.parametrize("size", [64, 256], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_make_up_the_two_interpolations(shape, size):
    frame = Frame.of(*shape, size)
    logits = noise(1, size // 4)
    scaling = Scaling.of(frame, size // 4)
    whole = assembled(scaling, logits[0])
    assert scaling.size == shape
    torch.testing.assert_close(
        whole[: shape[0], : shape[1]], frame.to_original(logits[None])[0, 0], rtol=1e-5, atol=1e-5
    )
    # what lies beyond the picture passes no threshold
    assert whole[shape[0] :, : shape[1]].isnan().all()
    assert whole[:, shape[1] :].isnan().all()
    assert all(axis.tile in (8, 16, 32) or axis.tile % 64 == 0 for axis in (scaling.rows, scaling.columns))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_points_are_pixels_of_the_two_interpolations(shape):
    frame = Frame.of(*shape, 64)
    logits = noise(3, 32)
    generator = torch.Generator().manual_seed(1)
    ys, xs = (torch.randint(0, side, (20,), generator=generator) for side in shape)
    got = Scaling.of(frame, 32).at(logits, ys, xs)
    torch.testing.assert_close(got, frame.to_original(logits[None])[0][:, ys, xs], rtol=1e-5, atol=1e-5)


def test_pixels_lie_between_the_logits_that_they_are_made_of():
    scaling = Scaling.of(Frame.of(123, 200, 64), 16)
    for axis in (scaling.rows, scaling.columns):
        inside = axis.weights[~axis.weights.isnan().any(2)]
        assert (inside >= 0).all()
        torch.testing.assert_close(inside.sum(1), torch.ones(axis.length))
