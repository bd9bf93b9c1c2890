"""sam_edge.models.grids: twin grids are integers of one step, on both sides of their split."""

import pytest
import torch
from torch.nn.functional import gelu

from sam_edge.models.grids import BranchGrid, OnGrid, OnTwinGrid, TwinGrid

BITS = (8, 6, 4)


def values(signed: bool, count: int = 20001) -> torch.Tensor:
    """Like GELU's output, or like attention weights, and beyond both ends."""
    if signed:
        return gelu(torch.linspace(-6, 6, count))
    return torch.cat([torch.linspace(0, 0.02, count), torch.linspace(0, 1.1, count)])


def twin(signed: bool, bits: int, shift: int = 2) -> TwinGrid:
    """A grid over those values."""
    top = 2 ** (bits - 1) - 1
    return TwinGrid.signed(5.0 / top, shift, bits) if signed else TwinGrid.unsigned(1 / top, shift, bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_values_are_integers_of_the_fine_step_and_no_more_than_the_bits_have(signed, bits):
    grid = twin(signed, bits)
    low, high = grid.branches(values(signed))
    found = (low.double() + high.double()).unique() / grid.fine
    assert (found - found.round()).abs().max() < 1e-3
    assert len(found.round().unique()) <= 2**bits
    assert high.div(grid.scale).round().sub(high / grid.scale).abs().max() < 1e-3


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_the_error_is_half_a_step_of_the_own_side(signed, bits):
    grid = twin(signed, bits, shift=1)
    x = values(signed)
    half = 2 ** (bits - 1)
    x = x[(x >= -half * grid.fine if signed else x >= 0) & (x <= (half - 1) * grid.scale)]
    off = (sum(grid.branches(x)) - x).abs()
    below = x < grid.split
    assert off[below].max() <= grid.fine / 2 * (1 + 1e-4)
    assert off[~below].max() <= grid.scale / 2 * (1 + 1e-4)
    # the fine side is what the second step is for
    assert off[below].max() < off[~below].max()


def test_values_above_the_split_are_not_a_split_too_large():
    grid = twin(False, 8, 3)
    assert 0 < grid.split < 0.2
    x = torch.tensor([0.3, 0.7, 0.99])
    torch.testing.assert_close(sum(grid.branches(x)), x, rtol=0, atol=grid.scale / 2 * 1.001)


@pytest.mark.parametrize("dialect", ["cpu", "tensorrt"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_the_module_gives_the_grid_s_branches(signed, bits, dialect):
    grid = twin(signed, bits)
    on_twin = OnTwinGrid(grid)
    for branch in (on_twin.fine, on_twin.coarse):
        branch.set_dialect(dialect)
    x = values(signed)
    wanted, got = grid.branches(x), on_twin(x)
    for one, other in zip(got, wanted, strict=True):
        # 128 fine steps do not fit an int8: the one value where twins differ between dialects
        most = 1.001 * grid.fine if dialect == "tensorrt" and not signed and bits == 8 else 1e-5
        edge = ((x / grid.fine) % 1 - 0.5).abs() < 1e-3
        assert (one - other)[~edge].abs().max() <= most


def test_a_branch_keeps_its_step_in_every_dialect():
    branch = OnGrid(BranchGrid(0.03, -128, 0))
    for dialect in ("cpu", "tensorrt"):
        branch.set_dialect(dialect)
        assert branch.scale.item() == pytest.approx(0.03)
        assert branch(torch.tensor([-10.0, 5.0])).tolist() == pytest.approx([-3.84, 0.0])


def test_gradients_pass_straight_through_and_stop_where_values_are_clipped():
    x = torch.linspace(-2, 2, 51).requires_grad_()
    on_grid = OnGrid(BranchGrid(0.5, -3, 2))
    y = on_grid(x)
    y.sum().backward()
    inside = (x.detach() >= -1.75) & (x.detach() <= 1.25)
    assert 0 < inside.sum() < 50
    assert torch.equal(x.grad, inside.float())
    with torch.no_grad():
        torch.testing.assert_close(on_grid(x), y.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_of_a_twin_grid_s_branches_one_carries_the_gradient(signed):
    x = values(signed, 501).clamp(-0.17, 1.0).requires_grad_()
    grid = twin(signed, 8)
    sum(OnTwinGrid(grid)(x)).sum().backward()
    # beside the split, values round to it on either side
    off = (x.detach() - grid.split).abs() > grid.scale
    within = off & (x.detach() < 0.99 * grid.scale * (127 - grid.split_steps) + grid.split)
    assert torch.equal(x.grad[within], torch.ones(int(within.sum())))
