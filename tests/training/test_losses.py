"""sam_edge.training.losses: against loops in float64."""

import math

import numpy as np
import pytest
import torch

from sam_edge.training import losses
from sam_edge.training.losses import brought_to, dice_loss, focal_loss, mask_iou, mask_loss, segmentation_loss


def random_case(*shape: int, soft: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets."""
    generator = torch.Generator().manual_seed(len(shape))
    target = torch.rand(*shape, generator=generator)
    return 3 * torch.randn(*shape, generator=generator), target if soft else (target > 0.6).float()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_focal_is_a_float64_loop(soft):
    logits, target = random_case(2, 3, 5, 4, soft=soft)
    got = focal_loss(logits, target)
    for index in np.ndindex(2, 3):
        total = 0.0
        for x, t in zip(logits[index].flatten().tolist(), target[index].flatten().tolist(), strict=True):
            p = sigmoid(x)
            wrong = t * (1 - p) + (1 - t) * p
            total -= wrong**2 * (t * math.log(p) + (1 - t) * math.log(1 - p))
        assert got[index].item() == pytest.approx(total / 20, rel=1e-4)


def test_focal_of_hard_targets_is_lin_s_equation_4():
    logits, target = random_case(1, 6, 6)
    p_t = torch.where(target > 0, logits.sigmoid(), 1 - logits.sigmoid()).double()
    wanted = (-((1 - p_t) ** 2) * p_t.log()).mean()
    assert focal_loss(logits, target).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_dice_is_a_float64_loop(soft):
    logits, target = random_case(2, 3, 5, 4, soft=soft)
    got = dice_loss(logits, target)
    for index in np.ndindex(2, 3):
        overlap = total = 0.0
        for x, t in zip(logits[index].flatten().tolist(), target[index].flatten().tolist(), strict=True):
            overlap += sigmoid(x) * t
            total += sigmoid(x) + t
        assert got[index].item() == pytest.approx(1 - (2 * overlap + 1) / (total + 1), rel=1e-4)


def test_iou_is_a_count():
    logits, target = random_case(2, 3, 5, 4)
    logits[0, 0], target[0, 0] = -1, 0
    logits[0, 1], target[0, 1] = -1, 1
    got = mask_iou(logits, target)
    for index in np.ndindex(2, 3):
        predicted, wanted = logits[index].numpy() > 0, target[index].numpy() > 0.5
        union, overlap = np.count_nonzero(predicted | wanted), np.count_nonzero(predicted & wanted)
        assert got[index].item() == pytest.approx(overlap / union if union else 1.0)
    assert (got[0, 0], got[0, 1]) == (1, 0)


def test_a_perfect_prediction_costs_nothing_and_its_opposite_much():
    _, target = random_case(2, 3, 8, 8)
    logits = 40 * (target - 0.5)
    assert mask_loss(logits, target).max() < 1e-6
    assert mask_loss(-logits, target).min() > 100
    four = logits[:, :, None].expand(2, 3, 4, 8, 8)
    loss, parts = segmentation_loss(four, torch.ones(2, 3, 4), target, torch.ones(2, 3, dtype=torch.bool))
    assert loss.item() < 1e-5
    assert parts["miou_single"] == parts["miou_best"] == 1


def test_the_mask_loss_is_twenty_parts_focal_and_one_dice():
    logits, target = random_case(2, 5, 4)
    torch.testing.assert_close(mask_loss(logits, target), 20 * focal_loss(logits, target) + dice_loss(logits, target))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_gradient_of_the_mask_loss_is_that_of_its_two_parts(soft):
    logits, target = (case.double() for case in random_case(4, 7, 5, soft=soft))
    logits.requires_grad_()
    weights = torch.arange(1.0, 5.0, dtype=torch.double)
    (fused,) = torch.autograd.grad((weights * mask_loss(logits, target)).sum(), logits)
    (parts,) = torch.autograd.grad(
        (weights * (20 * focal_loss(logits, target) + dice_loss(logits, target))).sum(), logits
    )
    torch.testing.assert_close(fused, parts, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: mask_loss(x, target), (logits,))


def test_masks_are_worked_on_a_few_at_a_time_with_the_same_result(monkeypatch):
    logits, target = random_case(9, 6, 6)
    whole = mask_loss(logits, target)
    monkeypatch.setattr(losses._MaskLoss, "CELLS", 80)
    torch.testing.assert_close(mask_loss(logits, target), whole, rtol=0, atol=0)
    assert mask_loss(logits[:0], target[:0]).shape == (0,)


def test_finer_targets_are_met_by_what_learns_alone():
    """Single masks, and of ambiguous prompts the one that is best on the logits' own cells."""
    logits, iou, _ = case_of_four()
    target = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()
    loss, parts = segmentation_loss(logits, iou, target, AMBIGUOUS)
    loss.backward()
    finer = brought_to(logits, (12, 12))
    cells = torch.nn.functional.avg_pool2d(target, 2)
    single = best = 0.0
    for index in np.ndindex(2, 3):
        single += mask_loss(finer[index][0], target[index]).item() / 6
        coarse = [mask_loss(logits[index][k], cells[index]).item() for k in range(1, 4)]
        chosen = 1 + int(np.argmin(coarse))
        best += mask_loss(finer[index][chosen], target[index]).item() / 6 if AMBIGUOUS[index] else 0.0
        learns = logits.grad[index].flatten(1).any(-1)
        assert learns.tolist() == [k == 0 or (k == chosen and bool(AMBIGUOUS[index])) for k in range(4)]
    assert parts["mask"].item() == pytest.approx(single, rel=1e-5)
    assert parts["best_of_three"].item() == pytest.approx(best, rel=1e-5)


AMBIGUOUS = torch.tensor([[True, False, True], [False, True, True]])


def case_of_four() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and IoU of 2 x 3 prompt sets, and targets that another output of each fits best."""
    _, target = random_case(2, 3, 6, 6)
    noise = torch.randn(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(9))
    fit = torch.tensor([[1, 2, 3], [3, 1, 2]])
    gain = torch.nn.functional.one_hot(fit, 4)[..., None, None] * 4.0
    logits = noise + gain * (target[:, :, None] - 0.5)
    return logits, torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)), target


def test_the_loss_is_the_single_mask_s_plus_the_best_of_three_s_plus_iou_s():
    logits, iou, target = case_of_four()
    loss, parts = segmentation_loss(logits, iou, target, AMBIGUOUS)
    single, best, error, of_single, of_best = 0.0, 0.0, 0.0, [], []
    for index in np.ndindex(2, 3):
        each = [mask_loss(logits[index][k], target[index]).item() for k in range(4)]
        actual = [mask_iou(logits[index][k], target[index]).item() for k in range(4)]
        single += each[0] / 6
        best += min(each[1:]) / 6 if AMBIGUOUS[index] else 0.0
        error += sum((iou[index][k].item() - actual[k]) ** 2 for k in range(4)) / 24
        of_single.append(actual[0])
        of_best.append(max(actual[1:]) if AMBIGUOUS[index] else actual[0])
    assert parts["mask"].item() == pytest.approx(single, rel=1e-5)
    assert parts["best_of_three"].item() == pytest.approx(best, rel=1e-5)
    assert parts["iou"].item() == pytest.approx(error, rel=1e-5)
    assert loss.item() == pytest.approx(single + best + error, rel=1e-5)
    assert parts["miou_single"].item() == pytest.approx(np.mean(of_single))
    assert parts["miou_best"].item() == pytest.approx(np.mean(of_best))


def test_gradients_reach_the_single_mask_and_for_ambiguous_prompts_the_best_of_three():
    logits, iou, target = case_of_four()
    logits.requires_grad_()
    iou.requires_grad_()
    segmentation_loss(logits, iou, target, AMBIGUOUS)[0].backward()
    reached = logits.grad.flatten(-2).abs().sum(-1) > 0
    best = mask_loss(logits, target[:, :, None].expand_as(logits))[..., 1:].argmin(-1) + 1
    assert len(best.unique()) == 3
    wanted = torch.nn.functional.one_hot(best, 4).bool() & AMBIGUOUS[..., None]
    wanted[..., 0] = True
    assert torch.equal(reached, wanted)
    # all four IoU are learned
    assert (iou.grad != 0).all()


def test_without_an_ambiguous_prompt_the_three_cost_nothing():
    logits, iou, target = case_of_four()
    _, parts = segmentation_loss(logits, iou, target, torch.zeros_like(AMBIGUOUS))
    assert parts["best_of_three"] == 0
    assert parts["miou_best"] == parts["miou_single"]


def test_the_parts_that_are_reported_carry_no_gradient():
    logits, iou, target = case_of_four()
    _, parts = segmentation_loss(logits.requires_grad_(), iou.requires_grad_(), target, AMBIGUOUS)
    assert not any(part.requires_grad for part in parts.values())


def test_huge_logits_stay_finite():
    _, target = random_case(2, 6, 6)
    logits = torch.full((2, 6, 6), 1e4).requires_grad_()
    for sign in (1, -1):
        loss = mask_loss(sign * logits, target).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_on_nothing_only_the_predicted_iou_learns_and_learns_zero():
    logits, iou, target = case_of_four()
    target[0, 1] = 0
    logits[0, 2] = -1
    target[0, 2] = 0
    logits.requires_grad_()
    iou.requires_grad_()
    loss, parts = segmentation_loss(logits, iou, target, AMBIGUOUS)
    loss.backward()
    on_nothing = torch.tensor([[False, True, True], [False, False, False]])
    assert torch.equal((logits.grad != 0).flatten(2).any(-1), ~on_nothing)
    # of a mask that is there as of one that is empty, too
    torch.testing.assert_close(iou.grad[on_nothing], 2 * iou[on_nothing].detach() / iou.numel())
    actual = [mask_iou(logits[i][0], target[i]).item() for i in np.ndindex(2, 3) if not on_nothing[i]]
    assert parts["miou_single"].item() == pytest.approx(np.mean(actual))
