"""A teacher's own masks, found on an embedding of it by a grid of points: labels where there are none."""

import torch
from jaxtyping import Bool, Float
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from sam_edge.models.prompts import on_device
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.prompts import Prompts

POINTS_PER_BATCH = 64
BOX_NMS = 0.7
"""IoU of boxes above which the mask of lower predicted IoU is dropped, as segment-anything's everything mode does."""
STABILITY_OFFSET = 1.0
MIN_CELLS = 6
"""Smallest mask kept, in cells of the decoder's logits."""


@torch.no_grad()
def own_masks(
    model: EdgeSam,
    embedding: Float[Tensor, "1 c g g"],
    extent_px: tuple[float, float],
    points_per_side: int,
    max_masks: int,
) -> Bool[Tensor, "k m m"]:
    """Masks by points over the picture's part of a view, kept by the model's thresholds, the likeliest first.

    As in everything mode: the three masks of each point, filtered by predicted IoU before they are up-scaled, by
    stability, and by overlap of boxes.
    """
    decoder, thresholds = model.decoder, model.config.thresholds
    ticks = (torch.arange(points_per_side) + 0.5) / points_per_side
    points = torch.cartesian_prod(ticks, ticks) * torch.tensor(extent_px)
    state = decoder.share(decoder.prepare(embedding))
    kept_masks, kept_iou = [], []
    for chunk in points.split(POINTS_PER_BATCH):
        labels = torch.ones(1, len(chunk), 1, dtype=torch.long)
        prompts = on_device(Prompts.build(chunk[None, :, None], labels), embedding.device)
        tokens, iou, image = decoder.predict(state, prompts.coords, prompts.labels)
        likely = iou[0, :, 1:] > thresholds.pred_iou
        some = likely.any(-1)
        if not some.any():
            continue
        logits = decoder.upscale(tokens[:, some], image[:, some])[0, :, 1:][likely[some]].float()
        # a mask that is empty at the higher threshold has no score
        stability = calculate_stability_score(logits, 0.0, STABILITY_OFFSET).nan_to_num(0.0)
        masks = logits > 0
        good = (stability > thresholds.stability) & (masks.sum((-2, -1)) >= MIN_CELLS)
        kept_masks.append(masks[good])
        kept_iou.append(iou[0, :, 1:][likely].float()[good])
    masks = (
        torch.cat(kept_masks) if kept_masks else torch.zeros(0, model.config.mask_size, model.config.mask_size).bool()
    )
    if not len(masks):
        return masks.to(embedding.device)
    chosen = nms(masks_to_boxes(masks), torch.cat(kept_iou), BOX_NMS)
    return masks[chosen[:max_masks]]
