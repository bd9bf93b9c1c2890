"""How well two sets of masks of one picture match."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from sam_edge.data.rle import encode_mask, to_rle


def best_ious(wanted: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]) -> Float[np.ndarray, "wanted"]:
    """For each mask wanted (COCO compressed RLE) the IoU of the record that matches it best; 0 where there is none."""
    if not wanted or not records:
        return np.zeros(len(wanted))
    given = [as_rle(record) for record in records]
    return np.asarray(coco_mask.iou(given, list(wanted), [0] * len(wanted))).max(0)


def agreement(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> float:
    """Mean over the records of both of the IoU with the other's best match; 1 where both found nothing.

    Empty masks, which filters that are turned off let through, count as nothing.
    """
    first, second = ([record for record in records if record["area"]] for records in (first, second))
    if not first and not second:
        return 1.0
    there = best_ious([as_rle(record) for record in first], second)
    back = best_ious([as_rle(record) for record in second], first)
    return float(np.concatenate([there, back]).mean())


def as_rle(record: dict[str, Any]) -> dict[str, Any]:
    """A record's mask as COCO compressed RLE, in whatever output mode it was made."""
    segmentation = record["segmentation"]
    return (
        encode_mask(segmentation)
        if isinstance(segmentation, np.ndarray)
        else to_rle(segmentation, *segmentation["size"])
    )
