"""From masks found to segment-anything's records: run lengths, small regions, output modes."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from sam_edge.segment.regions import remove_small_regions

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
MOST_OF_WHOLE = 8
"""A part's whole is at most so many times as large. What is smaller lies on the larger, as a cup on a table; and one
mask over most of a picture, of which a small model may be sure, would else be all that is found."""


@dataclass(frozen=True)
class Found:
    """One mask of a picture, as run lengths."""

    size: tuple[int, int]
    """Height and width of the picture."""
    runs: Int[np.ndarray, "runs"]
    """Lengths of its runs down the columns, those outside the mask first."""
    box: tuple[int, int, int, int]
    """XYXY of its first and last pixels."""
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    """What it was prompted with, in pixels (x, y)."""
    crop_box: tuple[int, int, int, int]
    """XYXY of the crop that it was found in."""

    def mask(self) -> Bool[np.ndarray, "h w"]:
        """Its pixels, in column-major order."""
        inside = np.arange(len(self.runs)) % 2 == 1
        return np.repeat(inside, self.runs).reshape(self.size[::-1]).T

    def record(self, mode: OutputMode) -> dict[str, Any]:
        """segment-anything's record."""
        return {
            "segmentation": self._segmentation(mode),
            "area": int(self.runs[1::2].sum()),
            "bbox": _xywh(self.box),
            "predicted_iou": self.predicted_iou,
            "point_coords": [list(self.point)],
            "stability_score": self.stability_score,
            "crop_box": _xywh(self.crop_box),
        }

    def _segmentation(self, mode: OutputMode) -> np.ndarray | dict[str, Any]:
        if mode == "binary_mask":
            return self.mask()
        return self.rle() if mode == "coco_rle" else self._uncompressed()

    def rle(self) -> dict[str, Any]:
        """COCO's compressed run lengths."""
        height, width = self.size
        rle: dict[str, Any] = coco_mask.frPyObjects(self._uncompressed(), height, width)
        return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}

    def _uncompressed(self) -> dict[str, Any]:
        return {"size": list(self.size), "counts": self.runs.tolist()}


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "runs"]:
    """Run lengths down the columns, those outside the mask first; fastest on a column-major mask."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([first, changes, [flat.size]])).astype(np.int32)


def suppress(
    boxes: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
) -> Int[np.ndarray, "kept"]:
    """Indices left by box non-maximum suppression, best first: torchvision's `nms`, in its arithmetic.

    Of boxes with equal scores the earlier comes first.
    """
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = boxes[order].astype(np.float32).T
    area = (x1 - x0) * (y1 - y0)
    left = np.ones(len(order), bool)
    for place in range(len(order)):
        if not left[place]:
            continue
        after = place + 1 + np.flatnonzero(left[place + 1 :])
        width = np.minimum(x1[place], x1[after]) - np.maximum(x0[place], x0[after])
        height = np.minimum(y1[place], y1[after]) - np.maximum(y0[place], y0[after])
        common = np.maximum(width, 0) * np.maximum(height, 0)
        with np.errstate(invalid="ignore"):
            # two empty boxes are 0 / 0, which suppresses nothing; the threshold alone is in double precision
            iou = (common / (area[place] + area[after] - common)).astype(np.float64)
            left[after[iou > threshold]] = False
    return order[left]


def without_small_regions(found: list[Found], min_area: int, threshold: float) -> list[Found]:
    """Fill holes and remove islands of less than `min_area` pixels, then suppress new duplicates.

    As in segment-anything, masks that needed no change are preferred.
    """
    cleaned = [_cleaned(one, min_area) for one in found]
    if not cleaned:
        return []
    boxes = np.array([one.box for one in cleaned])
    unchanged = np.array([float(new is old) for new, old in zip(cleaned, found, strict=True)])
    return [cleaned[index] for index in suppress(boxes, unchanged, threshold)]


def without_nested(found: list[Found], threshold: float) -> list[Found]:
    """Leave out masks of which more than the share `threshold` lies in a larger one of no smaller predicted IoU that is
    at most `MOST_OF_WHOLE` times as large.

    Box non-maximum suppression keeps every part of a thing beside the whole, and a small model finds many of them.
    """
    if threshold >= 1 or not found:
        return found
    rles = [one.rle() for one in found]
    # with a crowd, COCO's IoU is the share of the first mask that lies in the second
    inside = np.asarray(coco_mask.iou(rles, rles, [1] * len(rles)))
    # one by one: pycocotools counts those of a list in a byte
    area = np.array([int(coco_mask.area(rle)) for rle in rles])
    score = np.array([one.predicted_iou for one in found])
    whole = (area[None] > area[:, None]) & (area[None] <= MOST_OF_WHOLE * area[:, None])
    over = whole & (score[None] >= score[:, None])
    nested = np.asarray((over & (inside > threshold)).any(1)).tolist()
    return [one for one, leave in zip(found, nested, strict=True) if not leave]


def _cleaned(found: Found, min_area: int) -> Found:
    mask, filled = remove_small_regions(found.mask(), min_area, mode="holes")
    mask, removed = remove_small_regions(mask, min_area, mode="islands")
    if not filled and not removed:
        return found
    return replace(found, runs=run_lengths(mask), box=box_of(mask))


def box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """XYXY of the first and last pixels; zeros for an empty mask."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(xs[0]), int(ys[0]), int(xs[-1]), int(ys[-1])) if len(ys) else (0, 0, 0, 0)


def _xywh(box: tuple[int, int, int, int]) -> list[int]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
