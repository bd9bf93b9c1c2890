"""sam_edge.quantize.task_loss: the divergence is zero at the float model, and draws have its Hessian."""

import torch

from sam_edge.quantize.task_loss import draw, task_loss


def answers(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and IoU of one picture and two prompts."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(1, 2, 4, 2, 2, generator=generator), torch.rand(1, 2, 4, generator=generator)


def test_the_loss_is_zero_with_zero_gradient_at_the_float_model():
    logits, iou = (value.requires_grad_() for value in answers())
    loss = task_loss(logits, iou, logits.detach(), iou.detach())
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert logits.grad.abs().max() < 1e-7
    assert iou.grad.abs().max() < 1e-7


def test_the_loss_is_the_bernoulli_and_normal_divergence():
    (logits, iou), (right, right_iou) = answers(1), answers(2)
    got = task_loss(logits, iou, right, right_iou)
    bernoulli = torch.distributions.Bernoulli(logits=right), torch.distributions.Bernoulli(logits=logits)
    normal = torch.distributions.Normal(right_iou, 0.1), torch.distributions.Normal(iou, 0.1)
    masks, ious = (torch.distributions.kl_divergence(*pair) for pair in (bernoulli, normal))
    by_mask = masks.sum((3, 4)) / right.sigmoid().sum((3, 4)).clamp(min=1)
    torch.testing.assert_close(got, by_mask.mean(2).sum() + ious.mean(2).sum())


def test_the_squares_of_drawn_gradients_are_the_second_derivatives():
    logits, iou = (value.double().requires_grad_() for value in answers())
    # an inner value that masks and IoU both depend on
    inner = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(3, logits[0].numel(), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tilt = 0.1 * torch.randn(3, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def forward(z):
        return logits.detach() + (z @ mix).view_as(logits), iou.detach() + (z @ tilt).view_as(iou)

    def loss(z):
        return task_loss(*forward(z), logits.detach(), iou.detach())

    hessian = torch.autograd.functional.hessian(loss, inner.detach())
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(3, 3, dtype=torch.float64)
    draws = 4000
    for _ in range(draws):
        (grad,) = torch.autograd.grad(draw(*forward(inner), generator), inner)
        total += torch.outer(grad, grad) / draws
    assert (total - hessian).norm() < 0.1 * hessian.norm()


def test_a_small_mask_counts_as_much_as_a_large_one():
    """The same relative damage, a tenth of the foreground lost, costs the same whatever the mask's size."""
    costs = []
    for side in (10, 100):
        right = torch.full((1, 1, 4, 128, 128), -12.0)
        right[..., :side, :side] = 12.0
        wrong = right.clone()
        wrong[..., : side // 10, :side] = 0.0
        same = torch.zeros(1, 1, 4)
        costs.append(task_loss(wrong, same, right, same).item())
    assert costs[0] > 0
    assert abs(costs[0] - costs[1]) < 0.01 * costs[0]
