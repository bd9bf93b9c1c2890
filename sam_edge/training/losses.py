"""SAM's training losses (Segment Anything, appendix A): focal and dice on masks, squared error on IoU."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


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
    """20 x focal + 1 x dice, as SAM weighs them."""
    return focal_weight * focal_loss(logits, target) + dice_loss(logits, target)


def segmentation_loss(
    logits: Float[Tensor, "b n 4 h w"],
    iou: Float[Tensor, "b n 4"],
    target: Float[Tensor, "b n h w"],
    ambiguous: Bool[Tensor, "b n"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The single mask's loss, plus the best of the three others' (SAM's ambiguity-aware minimum), plus IoU's.

    The three learn from `ambiguous` prompts alone (Segment Anything, appendix A): a box means one thing, and three
    masks that all learn it grow alike. Where `target` is empty a prompt is on nothing labelled: no mask is right or
    wrong there, but whatever is found is no labelled thing, and its predicted IoU learns 0.

    Returns the scalar to minimise and its parts: mask, best_of_three, iou, and mean IoU, of the single mask and of the
    best of three where prompts are ambiguous, of prompts that are on something.
    """
    wanted = target[:, :, None].expand_as(logits)
    per_mask = mask_loss(logits, wanted)
    thing = (target > 0.5).flatten(2).any(-1)
    single = (per_mask[..., 0] * thing).mean()
    best = (per_mask[..., 1:].amin(-1) * ambiguous * thing).mean()
    with torch.no_grad():
        actual = mask_iou(logits, wanted) * thing[..., None]
        things = thing.sum().clamp(min=1)
    predicted = F.mse_loss(iou, actual)
    parts = {
        "mask": single.detach(),
        "best_of_three": best.detach(),
        "iou": predicted.detach(),
        "miou_single": actual[..., 0].sum() / things,
        "miou_best": torch.where(ambiguous, actual[..., 1:].amax(-1), actual[..., 0]).sum() / things,
    }
    return single + best + predicted, parts
