"""sam_edge.training.prompting: points lie where they are drawn from, boxes stay in the picture."""

import torch

from sam_edge.segment.prompts import BACKGROUND, FOREGROUND
from sam_edge.training.prompting import correction, jitter_boxes, random_cells, seeded


def fresh(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(region: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """What lies at (x, y) cells of each region."""
    flat = region.flatten(0, -3)
    x, y = cells.reshape(-1, 2).unbind(-1)
    return flat[torch.arange(len(flat)), y, x].reshape(cells.shape[:-1])


def test_cells_lie_in_their_region_and_cover_it():
    region = torch.zeros(7, 9, dtype=torch.bool)
    region[2:4, 5:8] = True
    region[6, 0] = True
    many = region.expand(40, 50, 7, 9)
    cells = random_cells(many, fresh())
    assert cells.shape == (40, 50, 2)
    assert at(many, cells).all()
    counts = torch.zeros(7, 9)
    for x, y in cells.reshape(-1, 2).tolist():
        counts[y, x] += 1
    # uniform: 2000 draws over seven cells
    assert counts[region].min() > 220
    assert counts[region].max() < 350


def test_an_empty_region_gives_a_cell_of_the_grid():
    cells = random_cells(torch.zeros(500, 4, 6, dtype=torch.bool), fresh())
    assert {tuple(cell) for cell in cells.tolist()} == {(x, y) for x in range(6) for y in range(4)}


def test_cells_are_a_function_of_the_seed():
    region = torch.rand(5, 8, 8, generator=fresh()) > 0.5
    assert torch.equal(random_cells(region, fresh(1)), random_cells(region, fresh(1)))
    assert not torch.equal(random_cells(region, fresh(1)), random_cells(region, fresh(2)))


def test_jittered_boxes_stay_inside_and_half_stay_tight():
    count = 4000
    corners = torch.rand(count, 2, 2, generator=fresh()) * torch.tensor([198.0, 98.0])
    # masks are at least a cell wide
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], -1)
    extent = torch.tensor([200.0, 100.0]).expand(count, 2)
    moved = jitter_boxes(boxes, extent, fresh(1))
    assert (moved >= 0).all()
    assert (moved[:, [0, 2]] <= 200).all()
    assert (moved[:, [1, 3]] <= 100).all()
    tight = (moved == boxes).all(-1)
    assert 0.46 < tight.float().mean() < 0.54
    # corners keep their order
    assert (moved[:, 2:] >= moved[:, :2]).all()


def test_corners_move_by_a_tenth_of_their_own_side_and_at_most_20_px():
    boxes = torch.tensor([[300.0, 400.0, 400.0, 440.0], [300.0, 300.0, 800.0, 800.0]]).repeat(3000, 1)
    moves = jitter_boxes(boxes, torch.full((6000, 2), 1000.0), fresh()) - boxes
    moved = moves[(moves != 0).any(-1)].abs()
    small, large = moves[::2].abs(), moves[1::2].abs()
    # two standard deviations of a tenth of 100 and of 40
    assert small[:, [0, 2]].max() <= 20.001
    assert 7.9 < small[:, [1, 3]].max() <= 8.001
    assert large.max() <= 20.001
    spread = small[:, [1, 3]][(small != 0).any(-1)].square().mean().sqrt()
    assert 3.2 < spread < 4.0
    assert moved.max() <= 20.001


def test_a_correction_comes_from_the_error_with_the_label_of_what_is_wanted():
    wanted = torch.zeros(6, 8, dtype=torch.bool)
    wanted[1:5, 1:5] = True
    predicted = torch.zeros(6, 8, dtype=torch.bool)
    predicted[1:5, 3:7] = True
    predictions, targets = predicted.expand(30, 20, 6, 8), wanted.expand(30, 20, 6, 8)
    cells, labels = correction(predictions, targets, fresh())
    assert at(predictions ^ targets, cells).all()
    assert torch.equal(labels == FOREGROUND, at(targets, cells))
    assert set(labels.unique().tolist()) == {FOREGROUND, BACKGROUND}


def test_missed_parts_give_foreground_and_surplus_gives_background():
    wanted = torch.zeros(6, 8, dtype=torch.bool)
    wanted[1:5, 1:5] = True
    half = wanted & (torch.arange(8) < 3)
    missing = correction(half.expand(50, 6, 8), wanted.expand(50, 6, 8), fresh())
    surplus = correction(wanted.expand(50, 6, 8), half.expand(50, 6, 8), fresh())
    assert (missing[1] == FOREGROUND).all()
    assert (surplus[1] == BACKGROUND).all()
    assert (missing[0][:, 0] >= 3).all()


def test_without_an_error_the_point_is_inside():
    wanted = torch.zeros(6, 8, dtype=torch.bool)
    wanted[2:4, 2:5] = True
    cells, labels = correction(wanted.expand(60, 6, 8), wanted.expand(60, 6, 8), fresh())
    assert at(wanted.expand(60, 6, 8), cells).all()
    assert (labels == FOREGROUND).all()


def test_every_number_of_a_seed_counts():
    drawn = {tuple(torch.rand(3, generator=seeded(*numbers)).tolist()) for numbers in ((0, 5), (1, 5), (1, 6), (2, 5))}
    assert len(drawn) == 4
    assert torch.equal(torch.rand(3, generator=seeded(1, 5)), torch.rand(3, generator=seeded(1, 5)))
