"""SAM's training losses (Segment Anything, appendix A): focal and dice on masks, squared error on IoU."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def focal_loss(
    logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"], gamma: float = 2.0
) -> Float[Tensor, "*n"]:
    """Focal loss (Lin et al. 2017, eq. 4, no alpha), mean over pixels; `target` in [0, 1] may be soft at edges."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + target - 2 * probability * target
    return (cross_entropy * wrong**gamma).mean((-2, -1))


def dice_loss(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """One minus the soft Dice coefficient (V-Net), smoothed by one pixel."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_iou(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """IoU of the masks at logit 0 and target 0.5; two empty masks agree."""
    predicted, wanted = logits > 0, target > 0.5
    union = (predicted | wanted).sum((-2, -1))
    overlap = (predicted & wanted).sum((-2, -1))
    return torch.where(union > 0, overlap / union.clamp(min=1), torch.ones_like(union, dtype=torch.float))


def mask_loss(
    logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"], focal_weight: float = 20.0
) -> Float[Tensor, "*n"]:
    """20 x focal + 1 x dice, as SAM weighs them; the gradient is of the first order and of `logits` alone."""
    size = logits.shape[-2:]
    flat = _MaskLoss.apply(logits.reshape(-1, *size), target.reshape(-1, *size), focal_weight)
    return cast(Tensor, flat).view(logits.shape[:-2])


class _MaskLoss(torch.autograd.Function):
    """`focal_weight * focal_loss + dice_loss` with its gradient, made together while a mask is in the cache.

    Operation by operation the two keep a dozen maps as large as the logits, and backward reads them all again.
    """

    CELLS = 1 << 16
    """Cells worked on at a time on a CPU."""

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "n h w"], target: Float[Tensor, "n h w"], focal_weight: float
    ) -> Float[Tensor, "n"]:
        count, cells = len(logits), logits[0].numel() if len(logits) else 1
        loss = logits.new_empty(count)
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(_MaskLoss.CELLS // cells, 1) if logits.device.type == "cpu" else max(count, 1)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            x, t = logits[part], target[part]
            p = x.sigmoid()
            sign = 1 - 2 * t
            wrong = torch.addcmul(t, p, sign)
            entropy = F.softplus(x).addcmul_(x, t, value=-1)
            overlap = (p * t).sum((-2, -1))
            total = p.sum((-2, -1)) + t.sum((-2, -1)) + 1
            focal = (entropy * wrong).mul_(wrong).mean((-2, -1))
            loss[part] = focal_weight * focal + 1 - (2 * overlap + 1) / total
            if slope is not None:
                variance = p * (1 - p)
                # of the cross entropy and of how wrong it is, which gamma squares
                of_focal = ((p - t) * wrong).addcmul_(entropy.mul_(sign), variance, value=2).mul_(wrong)
                of_dice = torch.addcmul(
                    ((2 * overlap + 1) / total**2)[:, None, None], t, (1 / total)[:, None, None], value=-2
                )
                slope[part] = of_dice.mul_(variance).add_(of_focal, alpha=focal_weight / cells)
        if slope is not None:
            ctx.save_for_backward(slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n h w"], None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient[:, None, None], None, None


def brought_to(logits: Float[Tensor, "*n h w"], size: tuple[int, int]) -> Float[Tensor, "*n H W"]:
    """Logits at another size, as they are brought to a picture's."""
    if logits.shape[-2:] == size:
        return logits
    flat = F.interpolate(logits.flatten(0, -3)[:, None], size, mode="bilinear", align_corners=False)
    return flat.view(*logits.shape[:-2], *size)


def segmentation_loss(
    logits: Float[Tensor, "b n 4 h w"],
    iou: Float[Tensor, "b n 4"],
    target: Float[Tensor, "b n H W"],
    ambiguous: Bool[Tensor, "b n"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The single mask's loss, plus the best of the three others' (SAM's ambiguity-aware minimum), plus IoU's.

    The three learn from `ambiguous` prompts alone (Segment Anything, appendix A): a box means one thing, and three
    masks that all learn it grow alike. Where `target` is empty a prompt is on nothing labelled: no mask is right or
    wrong there, but whatever is found is no labelled thing, and its predicted IoU learns 0.

    Targets may be finer than logits. Which of the three is best is then told on the logits' cells, and only masks that
    learn are brought to the targets' size with their gradient.

    Returns the scalar to minimise and its parts: mask, best_of_three, iou, and mean IoU, of the single mask and of the
    best of three where prompts are ambiguous, of prompts that are on something.
    """
    size = (target.shape[-2], target.shape[-1])
    thing = (target > 0.5).flatten(2).any(-1)
    asked = ambiguous & thing
    with torch.no_grad():
        finest = brought_to(logits, size)
        actual = mask_iou(finest, target[:, :, None].expand_as(finest)) * thing[..., None]
        things = thing.sum().clamp(min=1)
        three = logits[asked][:, 1:]
        cells = F.adaptive_avg_pool2d(target, (logits.shape[-2], logits.shape[-1]))[asked]
        best = 1 + mask_loss(three, cells[:, None].expand_as(three)).argmin(-1)
    learning = torch.cat([logits[:, :, 0][thing], logits[asked].take_along_dim(best[:, None, None, None], 1)[:, 0]])
    per_mask = mask_loss(brought_to(learning, size), torch.cat([target[thing], target[asked]]))
    of_single, of_best = (part.sum() / thing.numel() for part in per_mask.split([int(thing.sum()), len(best)]))
    predicted = F.mse_loss(iou, actual)
    parts = {
        "mask": of_single.detach(),
        "best_of_three": of_best.detach(),
        "iou": predicted.detach(),
        "miou_single": actual[..., 0].sum() / things,
        "miou_best": torch.where(ambiguous, actual[..., 1:].amax(-1), actual[..., 0]).sum() / things,
    }
    return of_single + of_best + predicted, parts
