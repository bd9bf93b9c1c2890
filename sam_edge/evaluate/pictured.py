"""What a model card shows in pictures: what points and everything mode find, and the masks that are most wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import Annotation, LabelledImage
from sam_edge.evaluate.miou import iou
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Runtime

SMALLEST_SHARE = 0.01
"""Area of the smallest mask looked at, as a share of the picture: of smaller ones a picture shows little."""
MOST_POINTS = 6
"""Masks asked for by points in one example: of more a picture shows none."""


@dataclass(frozen=True, eq=False)
class Example:
    """What is found in a picture."""

    sample: LabelledImage
    points: Sequence[tuple[float, float]]
    """The stored points of its largest labelled masks, (x, y)."""
    by_points: Sequence[Bool[np.ndarray, "h w"]]
    """By each point alone, the single mask."""
    everything: Sequence[Bool[np.ndarray, "h w"]]
    """By everything mode, with the model's own thresholds."""


@dataclass(frozen=True, eq=False)
class Failure:
    """A mask asked for by its box, and what came."""

    sample: LabelledImage
    annotation: Annotation
    mask: Bool[np.ndarray, "h w"]
    iou: float


def examples(runtime: Runtime, dataset: Dataset[LabelledImage], count: int) -> list[Example]:
    """The first `count` pictures that have masks."""
    found: list[Example] = []
    for sample in dataset:
        if len(found) == count:
            break
        if sample.annotations:
            found.append(_example(runtime, sample))
    return found


def _example(runtime: Runtime, sample: LabelledImage) -> Example:
    predictor = SamPredictor(runtime)
    predictor.set_image(sample.image)
    largest = sorted(sample.annotations, key=lambda annotation: -annotation.area)[:MOST_POINTS]
    points = [annotation.point_xy for annotation in largest]
    masks = [predictor.predict(np.array([point]), np.array([1]), multimask_output=False)[0][0] for point in points]
    records = EverythingGenerator(runtime).generate(sample.image)
    return Example(sample, points, masks, [record["segmentation"] for record in records])


def worst_masks(runtime: Runtime, dataset: Dataset[LabelledImage], count: int) -> list[Failure]:
    """The `count` masks of lowest IoU, at most one per picture, worst first."""
    predictor = SamPredictor(runtime)
    worst = [failure for sample in dataset if (failure := _worst(predictor, sample)) is not None]
    return sorted(worst, key=lambda failure: failure.iou)[:count]


def _worst(predictor: SamPredictor, sample: LabelledImage) -> Failure | None:
    smallest = SMALLEST_SHARE * sample.image.shape[0] * sample.image.shape[1]
    annotations = [annotation for annotation in sample.annotations if annotation.area >= smallest]
    if not annotations:
        return None
    predictor.set_image(sample.image)
    assert predictor.frame is not None
    worst: Failure | None = None
    for annotation in annotations:
        boxes = predictor.frame.boxes_to_input([annotation.bbox_xywh])
        low_res, _ = predictor.predict_low_res(None, None, boxes, multimask_output=False)
        mask = predictor.masks(low_res)[0, 0]
        failure = Failure(sample, annotation, mask, iou(mask, annotation.mask()))
        if worst is None or failure.iou < worst.iou:
            worst = failure
    return worst
