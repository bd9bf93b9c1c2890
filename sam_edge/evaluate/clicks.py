"""Points to a valid mask: mean IoU after 1, 2, ... points, each put where the last mask is most wrong.

Segment Anything, section 7.1 and appendix D.1; TinySAM, figure 4. The first point is the mask's most interior one (its
stored point); each further one is at the maximum of the distance transform of what is wrong, be it missed or taken too
much, and is given together with all before it and the logits of the last mask.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import Annotation, LabelledImage, most_interior, most_interior_point
from sam_edge.errors import DataError
from sam_edge.evaluate.miou import iou
from sam_edge.evaluate.walk import Kept, walk_labelled
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
    data_sha256: str
    """Of the images and labels measured."""
    left: int = 0
    """Images that other processes have not measured yet; the numbers are of the rest."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def evaluate_clicks(
    runtime: Runtime,
    dataset: Dataset[LabelledImage],
    *,
    clicks: int = 5,
    multimask: bool = False,
    prompts_per_batch: int = 32,
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> ClicksResult:
    """Click each mask's stored point, then up to `clicks` - 1 times where the mask is most wrong.

    With `multimask` the first click, which is ambiguous, is answered by three masks, of which the one of highest
    predicted IoU is taken, as Segment Anything does; otherwise every answer is the single mask.

    Raises:
        DataError: less than one click, or no mask at all.
    """
    if clicks < 1:
        raise DataError(f"clicks must be at least 1, got {clicks}.")
    predictor = SamPredictor(runtime)

    def measure(sample: LabelledImage) -> list[list[float]]:
        rows: list[list[float]] = []
        if sample.annotations:
            predictor.set_image(sample.image)
            for start in range(0, len(sample.annotations), prompts_per_batch):
                chunk = sample.annotations[start : start + prompts_per_batch]
                rows += _rounds(predictor, chunk, clicks, multimask)
        return rows

    walked = walk_labelled(dataset, measure, kept, on_image)
    by_image = [rows for rows in walked.found.values() if rows]
    if not by_image:
        raise DataError("the data set has no masks to evaluate on: check --data and --split.")
    rows = [row for image in by_image for row in image]
    means = tuple(np.mean(rows, axis=0).tolist())
    return ClicksResult(means, len(rows), len(by_image), walked.skipped, walked.data_sha256, walked.left)


def _rounds(
    predictor: SamPredictor, annotations: tuple[Annotation, ...], clicks: int, multimask: bool
) -> list[list[float]]:
    """IoU of each annotation after each click."""
    frame = predictor.frame
    assert frame is not None
    wanted = [annotation.mask() for annotation in annotations]
    points = np.array([[annotation.point_xy] for annotation in annotations], np.float32)
    labels = np.full(points.shape[:2], FOREGROUND)
    low_res = None
    scores: list[list[float]] = [[] for _ in annotations]
    for click in range(clicks):
        three = multimask and click == 0
        given, predicted = predictor.predict_low_res(
            frame.to_input(points), labels, mask_input=low_res, multimask_output=three
        )
        best = predicted.argmax(1)[:, None, None, None]
        low_res = np.take_along_axis(given, best, 1)
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
    """(x, y) of the pixel farthest from the edge of what is missed or of what is taken too much, and its label.

    The farther of the two, a missed one where they are level; of a perfect mask, its most interior point once more.
    """
    missed, excess = wanted & ~mask, mask & ~wanted
    if not (missed.any() or excess.any()):
        return most_interior_point(wanted), FOREGROUND
    found = [(most_interior(part), label) for part, label in ((missed, FOREGROUND), (excess, BACKGROUND)) if part.any()]
    (point, _), label = max(found, key=lambda candidate: candidate[0][1])
    return point, label
