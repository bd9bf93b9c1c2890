"""Mean IoU by point or box prompts (the protocol of SlimSAM's table 1, for any runtime)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import Annotation, LabelledImage
from sam_edge.errors import DataError
from sam_edge.evaluate.walk import Kept, Walked, walk_labelled
from sam_edge.paired import Totals
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Runtime

PromptKind = Literal["point", "box"]


@dataclass(frozen=True)
class ReliabilityBin:
    """The masks whose predicted IoU lies in one tenth of [0, 1]."""

    predicted: float
    """Mean predicted IoU."""
    actual: float
    """Mean actual IoU."""
    masks: int


@dataclass(frozen=True)
class MiouResult:
    """Mean IoU over a data set's masks."""

    prompt: PromptKind
    """What each mask was prompted with: its stored point, or its box."""
    multimask: bool
    """Whether the three masks were asked for and the one of highest predicted IoU was taken."""
    miou: float
    """Mean over masks."""
    miou_per_image: float
    """Mean over images of the mean over an image's masks."""
    miou_best_of_three: float | None
    """Mean over masks of the best of the three; None without `multimask`."""
    miou_ellipse: float | None
    """Mean over masks of the ellipse inscribed in the box, which knows nothing of the picture; boxes only."""
    iou_error: float
    """Mean absolute difference of predicted and actual IoU of the masks taken."""
    reliability: tuple[ReliabilityBin, ...]
    """How predicted and actual IoU agree, by tenths of the predicted one; empty tenths are left out."""
    masks: int
    images: int
    skipped: int
    """Images that could not be read."""
    data_sha256: str
    """Of the images and labels measured."""
    left: int = 0
    """Images that other processes have not measured yet; the numbers are of the rest."""
    totals: Totals = ()
    """By image, the sum of its masks' IoU and how many there are: what pairs two models' results."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON, of the data set as a whole."""
        return {name: value for name, value in asdict(self).items() if name != "totals"}


_Row = list[float | None]
"""Of a mask: its IoU, the best one's of those it was chosen from, the predicted one, and the ellipse's of a box."""


@dataclass(frozen=True)
class Asked:
    """How each mask is asked for."""

    prompt: PromptKind = "point"
    """By its stored point, or its box."""
    multimask: bool = False
    """Ask for three masks and take the one of highest predicted IoU."""


def evaluate_miou(
    runtime: Runtime,
    dataset: Dataset[LabelledImage],
    *,
    prompt: PromptKind = "point",
    multimask: bool = False,
    prompts_per_batch: int = 64,
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> MiouResult:
    """Encode each image once, prompt for each of its masks, compare at the picture's own size.

    Raises:
        DataError: no mask at all.
    """
    asked = [Asked(prompt, multimask)]
    return evaluate_prompts(runtime, dataset, asked, prompts_per_batch=prompts_per_batch, kept=kept, on_image=on_image)[
        0
    ]


def evaluate_prompts(
    runtime: Runtime,
    dataset: Dataset[LabelledImage],
    asked: Sequence[Asked],
    *,
    prompts_per_batch: int = 64,
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> list[MiouResult]:
    """`evaluate_miou` for each of several ways to ask, which share one encoding of each image.

    `kept` says where each image's scores are kept as they are found, and which images are this process's.

    Raises:
        DataError: no mask at all.
    """
    predictor = SamPredictor(runtime)

    def measure(sample: LabelledImage) -> list[list[_Row]]:
        if not sample.annotations:
            return [[] for _ in asked]
        predictor.set_image(sample.image)
        return [_image_rows(predictor, sample, how, prompts_per_batch) for how in asked]

    walked = walk_labelled(dataset, measure, kept, on_image)
    return [
        _summary(how, [rows[number] for rows in walked.found.values() if rows[number]], walked)
        for number, how in enumerate(asked)
    ]


def _summary(how: Asked, by_image: list[list[_Row]], walked: Walked[Any]) -> MiouResult:
    if not by_image:
        raise DataError("the data set has no masks to evaluate on: check --data and --split.")
    rows = np.array([row for image in by_image for row in image], np.float64)
    ious, best, predicted, ellipse = rows.T
    return MiouResult(
        prompt=how.prompt,
        multimask=how.multimask,
        miou=float(ious.mean()),
        miou_per_image=float(np.mean([np.mean([row[0] for row in image]) for image in by_image])),
        miou_best_of_three=float(best.mean()) if how.multimask else None,
        miou_ellipse=float(ellipse.mean()) if how.prompt == "box" else None,
        iou_error=float(np.abs(predicted - ious).mean()),
        reliability=_reliability(list(zip(predicted.tolist(), ious.tolist(), strict=True))),
        masks=len(rows),
        images=len(by_image),
        skipped=walked.skipped,
        data_sha256=walked.data_sha256,
        left=walked.left,
        totals=tuple((float(np.sum([row[0] for row in image])), len(image)) for image in by_image),
    )


def _reliability(pairs: list[tuple[float, float]]) -> tuple[ReliabilityBin, ...]:
    tenths = [min(max(int(predicted * 10), 0), 9) for predicted, _ in pairs]
    bins = []
    for tenth in sorted(set(tenths)):
        inside = np.array([pair for pair, of in zip(pairs, tenths, strict=True) if of == tenth])
        predicted, actual = inside.mean(0)
        bins.append(ReliabilityBin(float(predicted), float(actual), len(inside)))
    return tuple(bins)


def _image_rows(predictor: SamPredictor, sample: LabelledImage, how: Asked, batch: int) -> list[_Row]:
    """The rows of the picture that the predictor holds."""
    rows: list[_Row] = []
    for start in range(0, len(sample.annotations), batch):
        chunk = sample.annotations[start : start + batch]
        prompts = _prompts(predictor, chunk, how.prompt)
        low_res, predicted = predictor.predict_low_res(**prompts, multimask_output=how.multimask)
        for annotation, logits, scores in zip(chunk, low_res, predicted, strict=True):
            # one prompt at a time at full size: a batch of 64 photos' worth would not fit
            masks = predictor.masks(logits[None])[0]
            wanted = annotation.mask()
            actual = [iou(mask, wanted) for mask in masks]
            chosen = int(scores.argmax())
            ellipse = iou(inscribed_ellipse(annotation, *wanted.shape), wanted) if how.prompt == "box" else None
            rows.append([actual[chosen], max(actual), float(scores[chosen]), ellipse])
    return rows


def _prompts(
    predictor: SamPredictor, chunk: tuple[Annotation, ...], prompt: PromptKind
) -> dict[str, np.ndarray | None]:
    frame = predictor.frame
    assert frame is not None
    if prompt == "box":
        boxes = frame.boxes_to_input([annotation.bbox_xywh for annotation in chunk])
        return {"point_coords": None, "point_labels": None, "boxes": boxes}
    points = np.array([annotation.point_xy for annotation in chunk], np.float32)
    labels = np.ones((len(chunk), 1), np.int64)
    return {"point_coords": frame.to_input(points)[:, None], "point_labels": labels, "boxes": None}


def iou(mask: Bool[np.ndarray, "h w"], wanted: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union; 1 when both are empty."""
    union = np.count_nonzero(mask | wanted)
    return np.count_nonzero(mask & wanted) / union if union else 1.0


def inscribed_ellipse(annotation: Annotation, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The ellipse inscribed in a box: what a model below has learned nothing."""
    x, y, w, h = annotation.bbox_xywh
    ys, xs = np.ogrid[:height, :width]
    distance = ((xs + 0.5 - x - w / 2) / max(w / 2, 0.5)) ** 2 + ((ys + 0.5 - y - h / 2) / max(h / 2, 0.5)) ** 2
    return distance <= 1
