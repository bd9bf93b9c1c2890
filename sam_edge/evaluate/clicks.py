"""Mean IoU after 1, 2, ... clicks, each put where the last mask is most wrong (Segment Anything, section 7.1)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import Annotation, LabelledImage, most_interior_point
from sam_edge.errors import DataError
from sam_edge.evaluate.miou import iou
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.prompts import BACKGROUND, FOREGROUND
from sam_edge.segment.runtime import Runtime


@dataclass(frozen=True)
class ClicksResult:
    """Mean IoU of the single mask after each number of clicks."""

    miou: tuple[float, ...]
    """Mean over masks after 1, 2, ... clicks."""
    masks: int
    images: int
    skipped: int
    """Images that could not be read."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def evaluate_clicks(
    runtime: Runtime,
    dataset: Dataset[LabelledImage],
    *,
    clicks: int = 5,
    prompts_per_batch: int = 32,
    on_image: Callable[[], None] | None = None,
) -> ClicksResult:
    """Click each mask's stored point, then up to `clicks` - 1 times where the mask is most wrong.

    Every later round is given all clicks so far and the mask of the round before.

    Raises:
        DataError: less than one click, or no mask at all.
    """
    if clicks < 1:
        raise DataError(f"clicks must be at least 1, got {clicks}.")
    predictor = SamPredictor(runtime)
    rows: list[list[float]] = []
    images = 0
    for sample in dataset:
        if sample.annotations:
            predictor.set_image(sample.image)
            for start in range(0, len(sample.annotations), prompts_per_batch):
                rows += _rounds(predictor, sample.annotations[start : start + prompts_per_batch], clicks)
            images += 1
        if on_image is not None:
            on_image()
    if not rows:
        raise DataError("the data set has no masks to evaluate on: check --data and --split.")
    return ClicksResult(tuple(np.mean(rows, axis=0).tolist()), len(rows), images, dataset.skipped)


def _rounds(predictor: SamPredictor, annotations: tuple[Annotation, ...], clicks: int) -> list[list[float]]:
    """IoU of each annotation after each click."""
    frame = predictor.frame
    assert frame is not None
    wanted = [annotation.mask() for annotation in annotations]
    points = np.array([[annotation.point_xy] for annotation in annotations], np.float32)
    labels = np.full(points.shape[:2], FOREGROUND)
    low_res = None
    scores: list[list[float]] = [[] for _ in annotations]
    for click in range(clicks):
        low_res, _ = predictor.predict_low_res(
            frame.to_input(points), labels, mask_input=low_res, multimask_output=False
        )
        corrections = []
        for index, logits in enumerate(low_res):
            mask = predictor.masks(logits[None])[0, 0]
            scores[index].append(iou(mask, wanted[index]))
            if click + 1 < clicks:
                corrections.append(next_click(mask, wanted[index]))
        if corrections:
            xy, kinds = zip(*corrections, strict=True)
            points = np.concat([points, np.array(xy, np.float32)[:, None]], 1)
            labels = np.concat([labels, np.array(kinds)[:, None]], 1)
    return scores


def next_click(mask: Bool[np.ndarray, "h w"], wanted: Bool[np.ndarray, "h w"]) -> tuple[tuple[int, int], int]:
    """(x, y) most interior to what is missed or to what is taken too much, whichever is more, and its label.

    Of a perfect mask, its most interior point once more.
    """
    missed, excess = wanted & ~mask, mask & ~wanted
    if not (missed.any() or excess.any()):
        return most_interior_point(wanted), FOREGROUND
    if np.count_nonzero(missed) >= np.count_nonzero(excess):
        return most_interior_point(missed), FOREGROUND
    return most_interior_point(excess), BACKGROUND
