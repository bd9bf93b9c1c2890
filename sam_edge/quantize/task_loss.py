"""TinySAM's task loss for quantization (eq. 9), and a random gradient whose square is its curvature.

L = KL(masks) + KL(predicted IoU), between what the float model says and what the quantized one says:

- a mask is a Bernoulli variable per pixel, the logit's sigmoid its mean; the KL is summed over pixels and divided by
  the pixels that the float model expects to be foreground. Mean IoU counts each mask alike, and so does this: averaged
  over the picture, as eq. 9 reads, a small object's mask would hardly count beside a large one's or the predicted IoU;
- a predicted IoU is a normal variable of standard deviation 0.1 around the prediction (about how far SAM's predictions
  lie from the truth), so its KL is the squared difference over 2 x 0.1^2; averaged over the four masks.

L is zero at the float model, and so is its gradient. Its second derivative there is the Fisher information, which the
gradient of the log-likelihood of outcomes drawn from the model's own predictions has as its covariance: `draw` gives a
scalar whose gradient with respect to any inner value has, in expectation, the Hessian of L as its outer product.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

IOU_DEVIATION = 0.1
"""Standard deviation of predicted IoU."""


def task_loss(
    logits: Float[Tensor, "b n 4 h w"],
    iou: Float[Tensor, "b n 4"],
    float_logits: Float[Tensor, "b n 4 h w"],
    float_iou: Float[Tensor, "b n 4"],
) -> Float[Tensor, ""]:
    """KL of the float model's answers from others, summed over prompts, averaged over masks; in nats."""
    target = float_logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(float_logits, target, reduction="none")
    masks = F.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy
    by_mask = masks.sum((3, 4)) / expected_area(target)
    return by_mask.mean(2).sum() + ((iou - float_iou) ** 2 / (2 * IOU_DEVIATION**2)).mean(2).sum()


def expected_area(probability: Float[Tensor, "b n 4 h w"]) -> Float[Tensor, "b n 4"]:
    """Foreground pixels that a mask is expected to have, at least one."""
    return probability.sum((3, 4)).clamp(min=1)


def draw(
    logits: Float[Tensor, "b n 4 h w"], iou: Float[Tensor, "b n 4"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """A sample of the log-likelihood's first-order part, scaled so that E[gradient gradient^T] = Hessian of L."""
    probability = logits.detach().sigmoid()
    outcome = torch.bernoulli(probability.cpu(), generator=generator).to(logits.device)
    share = expected_area(probability)[..., None, None] * logits.shape[2]
    score = (probability - outcome) / share.sqrt()
    noise = torch.randn(iou.shape, generator=generator).to(iou.device) / (IOU_DEVIATION * iou.shape[2] ** 0.5)
    return (score * logits).sum() + (noise * iou).sum()
