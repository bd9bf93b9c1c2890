"""How far a model's masks are those of the model it was made from: what can be measured where nothing is labelled."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import UInt8

from sam_edge.data.dataset import Dataset
from sam_edge.errors import DataError
from sam_edge.evaluate.miou import iou
from sam_edge.evaluate.walk import Kept, readable, walk
from sam_edge.segment.grid import regular_grid
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.prompts import FOREGROUND
from sam_edge.segment.runtime import Runtime


@dataclass(frozen=True)
class Agreement:
    """Mean IoU of a model's masks with its parent's, at the pictures' size."""

    point: float
    """By a grid of single points: of each the mask that people are shown, the one of three that its model predicts the
    highest IoU for."""
    point_parents_choice: float
    """Of the three, the one that the parent chose, in both: how far masks differ, but for the choice."""
    box: float | None
    """By the boxes of the masks that the parent gave for the points; None where they were all empty."""
    predicted_iou_error: float
    """Mean absolute difference of the predicted IoU of the parent's choices."""
    worst: tuple[tuple[str, float], ...]
    """The pictures that agree least by points, worst first."""
    prompts: int
    images: int
    skipped: int
    """Pictures that could not be read."""
    data_sha256: str
    """Of the pictures measured."""
    left: int = 0
    """Pictures that other processes have not measured yet; the numbers are of the rest."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


WORST = 10
"""Pictures that are named."""


def evaluate_agreement(
    runtime: Runtime,
    parent: Runtime,
    pictures: Dataset[tuple[str, UInt8[np.ndarray, "h w 3"]]],
    *,
    points_per_side: int = 6,
    prompts_per_batch: int = 36,
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> Agreement:
    """Ask both models for what lies under a grid of points, and in the boxes of what the parent found there.

    Raises:
        DataError: less than one point per side, or no picture that can be read.
    """
    if points_per_side < 1:
        raise DataError(f"the grid needs at least one point per side, got {points_per_side}.")
    child, other = SamPredictor(runtime), SamPredictor(parent)

    def measure(numbers: list[int]) -> Iterator[tuple[int, str, dict[str, list[float]]]]:
        for number, (_, image) in readable(pictures, numbers):
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            yield number, digest, _compared(child, other, image, points_per_side, prompts_per_batch)

    walked = walk(pictures.names, measure, kept, on_image)
    if not walked.found:
        raise DataError("no picture could be read: check --data.")
    by_image = walked.found
    boxes = [value for found in by_image.values() for value in found["box"]]
    means = {name: float(np.mean(found["shown"])) for name, found in by_image.items()}

    def mean(key: str) -> float:
        return float(np.mean([value for found in by_image.values() for value in found[key]]))

    return Agreement(
        point=mean("shown"),
        point_parents_choice=mean("same"),
        box=float(np.mean(boxes)) if boxes else None,
        predicted_iou_error=mean("predicted"),
        worst=tuple(sorted(means.items(), key=lambda pair: pair[1])[:WORST]),
        prompts=points_per_side**2 * len(by_image) + len(boxes),
        images=len(by_image),
        skipped=walked.skipped,
        data_sha256=walked.data_sha256,
        left=walked.left,
    )


def _compared(
    child: SamPredictor, parent: SamPredictor, image: UInt8[np.ndarray, "h w 3"], side: int, batch: int
) -> dict[str, list[float]]:
    """IoU of both models' masks of one picture, prompt by prompt."""
    for predictor in (child, parent):
        predictor.set_image(image)
    height, width = image.shape[:2]
    points = (regular_grid(side) * np.array([width, height])).astype(np.float32)[:, None]
    found: dict[str, list[float]] = {"shown": [], "same": [], "box": [], "predicted": []}
    for start in range(0, len(points), batch):
        chunk = points[start : start + batch]
        (new, new_iou), (old, old_iou) = (_asked(predictor, chunk) for predictor in (child, parent))
        boxes = []
        for index in range(len(chunk)):
            chosen, wanted = int(new_iou[index].argmax()), int(old_iou[index].argmax())
            mask = parent.masks(old[index : index + 1, wanted : wanted + 1])[0, 0]
            shown = child.masks(new[index : index + 1, chosen : chosen + 1])[0, 0]
            same = shown if chosen == wanted else child.masks(new[index : index + 1, wanted : wanted + 1])[0, 0]
            found["shown"].append(iou(shown, mask))
            found["same"].append(iou(same, mask))
            found["predicted"].append(abs(float(new_iou[index, wanted] - old_iou[index, wanted])))
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                boxes.append((columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]))
        if boxes:
            answers = [_boxed(predictor, boxes) for predictor in (child, parent)]
            for mine, theirs in zip(*answers, strict=True):
                found["box"].append(iou(child.masks(mine[None])[0, 0], parent.masks(theirs[None])[0, 0]))
    return found


def _asked(predictor: SamPredictor, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three masks' logits and predicted IoU of each point."""
    assert predictor.frame is not None
    labels = np.full(points.shape[:2], FOREGROUND)
    return predictor.predict_low_res(predictor.frame.to_input(points), labels)


def _boxed(predictor: SamPredictor, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """The single mask's logits of each box."""
    assert predictor.frame is not None
    corners = predictor.frame.boxes_to_input(boxes)
    return predictor.predict_low_res(None, None, corners, multimask_output=False)[0]
