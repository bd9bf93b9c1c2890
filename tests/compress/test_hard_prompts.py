"""Online hard prompts: where points come from, and what a step's rounds cost."""

import pytest
import torch

from sam_edge.compress.hard_prompts import (
    HardPromptOptions,
    draw_cells,
    draw_rounds,
    hard_prompts,
    next_points,
)
from sam_edge.errors import TrainingError
from sam_edge.segment.prompts import BACKGROUND, BOX_END, BOX_START, FOREGROUND, NOT_A_POINT

SIZE, CELLS = 64, 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def masks() -> torch.Tensor:
    """Two images, three masks each: rectangles."""
    masks = torch.zeros(2, 3, CELLS, CELLS, dtype=torch.bool)
    for image in range(2):
        for number in range(3):
            masks[image, number, 2 + image : 9 + number, 3 + number : 12] = True
    return masks


@pytest.fixture
def boxes(masks) -> torch.Tensor:
    rows = [[[3 + n, 2 + b, 12, 9 + n] for n in range(3)] for b in range(2)]
    return torch.tensor(rows, dtype=torch.float) * (SIZE / CELLS)


def sampled(masks, boxes, segment, seed=0, **options):
    extent = torch.full((2, 2), float(SIZE))
    return hard_prompts(masks, boxes, extent, SIZE, segment, HardPromptOptions(**options), generator(seed))


def cells_of(prompts, slot):
    """The cell that each set's point lies in."""
    return ((prompts.coords[:, :, slot] + 0.5) / (SIZE / CELLS)).floor().long()


def inside(cells, region):
    return region.flatten(-2).gather(-1, (cells[..., 1] * CELLS + cells[..., 0])[..., None])[..., 0]


def test_draws_are_uniform_over_a_region_and_never_leave_it():
    region = torch.zeros(1, 4, 5, dtype=torch.bool)
    region[0, 1, 2] = region[0, 3, 0] = region[0, 3, 4] = True
    uniform = (torch.arange(3000) + 0.5) / 3000
    cells = draw_cells(region.expand(3000, 4, 5), uniform)
    found, counts = torch.unique(cells, dim=0, return_counts=True)
    assert found.tolist() == [[0, 3], [2, 1], [4, 3]]
    assert counts.tolist() == [1000, 1000, 1000]


def test_a_draw_from_an_empty_region_takes_the_whole_grid():
    uniform = (torch.arange(40) + 0.5) / 40
    cells = draw_cells(torch.zeros(40, 4, 5, dtype=torch.bool), uniform)
    assert len(torch.unique(cells, dim=0)) == 20


def test_the_next_points_lie_in_what_was_missed(masks):
    predicted = masks.clone()
    predicted[..., :6] = False
    for seed in range(20):
        cells, labels = next_points(predicted, masks, torch.rand(2, 3, generator=generator(seed)), negatives=False)
        assert inside(cells, masks & ~predicted).all()
        assert (labels == FOREGROUND).all()


def test_without_anything_missed_the_next_points_lie_in_the_mask(masks):
    everything = torch.ones_like(masks)
    for seed in range(20):
        cells, labels = next_points(everything, masks, torch.rand(2, 3, generator=generator(seed)), negatives=False)
        assert inside(cells, masks).all()
        assert (labels == FOREGROUND).all()


def test_negatives_come_from_what_was_taken_too_much(masks):
    everything = torch.ones_like(masks)
    cells, labels = next_points(everything, masks, torch.rand(2, 3, generator=generator()), negatives=True)
    assert not inside(cells, masks).any()
    assert (labels == BACKGROUND).all()


def test_first_points_lie_in_the_mask_and_boxes_near_it(masks, boxes):
    prompts = sampled(masks, boxes, pytest.fail, box_share=0.5, max_rounds=0, prompts=3)
    boxed = prompts.labels[..., 0] == BOX_START
    assert inside(cells_of(prompts, 0), masks)[~boxed].all()
    assert (prompts.labels[boxed] == torch.tensor([BOX_START, BOX_END])).all()
    assert (prompts.labels[~boxed] == torch.tensor([FOREGROUND, NOT_A_POINT])).all()
    assert (prompts.coords[boxed] - boxes.unflatten(-1, (2, 2))[boxed]).abs().max() <= 20


def test_the_rounds_of_steps_are_uniform_from_none_to_nine():
    counts = torch.zeros(10)
    for step in range(2000):
        counts[draw_rounds(HardPromptOptions(), generator(step))] += 1
    assert counts.min() > 140


def test_a_step_segments_once_per_round(masks, boxes):
    for seed in range(12):
        calls = []

        def segment(prompts, calls=calls):
            calls.append(prompts)
            return torch.zeros_like(masks[:, -prompts.labels.shape[1] :])

        sampled(masks, boxes, segment, seed, prompts=3)
        assert len(calls) == draw_rounds(HardPromptOptions(), generator(seed))


def test_each_round_prompts_with_its_newest_point_alone_and_boxes_stay(masks, boxes):
    """Eq. 7: M_i is of P_i, not of all points so far. Boxes are not segmented, for nothing would come of it."""
    seed = next(s for s in range(99) if draw_rounds(HardPromptOptions(), generator(s)) == 4)
    seen = []

    def segment(prompts):
        seen.append(prompts)
        predicted = masks[:, boxed:].clone()
        # each round misses another column
        predicted[..., 4 + len(seen)] = False
        return predicted

    boxed = 1
    last = sampled(masks, boxes, segment, seed, prompts=3, box_share=1 / 3)
    expected = torch.tensor([[BOX_START, BOX_END]] + 2 * [[FOREGROUND, NOT_A_POINT]])
    assert torch.equal(last.labels, expected.expand(2, 3, 2))
    points = [prompts.coords for prompts in seen[1:]] + [last.coords[:, boxed:]]
    assert len(seen) == 4
    assert all((prompts.labels[..., 0] == FOREGROUND).all() for prompts in seen)
    for number, coords in enumerate(points, 1):
        missed = masks[:, boxed:, :, 4 + number].any(-1)
        assert missed.any()
        columns = ((coords[:, :, 0, 0] + 0.5) / (SIZE / CELLS)).floor().long()
        assert (columns[missed] == 4 + number).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_boxes_holds_on_average(masks, boxes, share):
    counts = []
    for seed in range(400):
        labels = sampled(masks, boxes, pytest.fail, seed, prompts=3, max_rounds=0, box_share=share).labels
        counts.append((labels[..., 0] == BOX_START).float().mean().item())
    assert sum(counts) / len(counts) == pytest.approx(share, abs=0.03)


def test_boxes_alone_are_never_segmented(masks, boxes):
    for seed in range(12):
        sampled(masks, boxes, pytest.fail, seed, prompts=3, box_share=1.0)


def test_accumulated_rounds_keep_every_point(masks, boxes):
    seed = next(s for s in range(99) if draw_rounds(HardPromptOptions(), generator(s)) == 3)
    prompts = sampled(masks, boxes, lambda asked: ~masks, seed, prompts=3, accumulate=True, negatives=True)
    assert prompts.labels.shape[2] == 5
    assert {BACKGROUND, FOREGROUND} <= set(prompts.labels[..., 2:].flatten().tolist())


def test_a_step_draws_the_same_prompts_again(masks, boxes):
    first, second, other = (
        sampled(masks, boxes, lambda asked: ~masks[:, -asked.labels.shape[1] :], seed, prompts=3) for seed in (5, 5, 6)
    )
    assert torch.equal(first.coords, second.coords)
    assert first.coords.shape != other.coords.shape or not torch.equal(first.coords, other.coords)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": True}, "negatives need accumulate"),
        ({"prompts": 0}, "prompts must be at least 1"),
        ({"box_share": 1.5}, r"within \[0, 1\]"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(TrainingError, match=message):
        HardPromptOptions(**options)
