"""`sam-edge segment`: prompts from the command line, masks into a folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_edge.data.image import read_image
from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.errors import PromptError
from sam_edge.files import atomic_folder, check_target
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.config import Coverage
from sam_edge.segment.everything import EverythingGenerator, Strategy
from sam_edge.segment.overlay import overlay
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Runtime


@dataclass(frozen=True)
class ImagePrompts:
    """What is asked of one picture, in its pixels; no points and no box asks for everything."""

    points: tuple[tuple[float, float, int], ...] = ()
    """(x, y, label) each; label 1 is object, 0 is not."""
    box: tuple[float, float, float, float] | None = None
    """XYXY."""


@dataclass(frozen=True)
class EverythingOptions:
    """How everything is looked for."""

    strategy: Strategy = "grid"
    """grid asks every point; hierarchical skips those in confident masks, which is faster and finds fewer parts."""
    points_per_side: int = 32
    """Points along each side of the picture: more find smaller objects, and take longer by their square."""
    pred_iou: float | None = None
    """Predicted IoU that masks must exceed, instead of the model's own threshold: higher keeps fewer and better."""
    stability: float | None = None
    """Smallest stability score, instead of the model's own: higher keeps fewer masks, of clearer outlines."""
    tau: float | None = None
    """Confidence above which a point is answered, instead of the model's own: lower skips more points."""
    coverage: Coverage | None = None
    """What tau is compared with, instead of the model's own choice: logit, as in TinySAM, or contrast."""
    nested: float | None = None
    """Largest share of a mask that may lie in a larger one of no smaller predicted IoU, instead of the model's own:
    lower leaves out more parts of what was found whole, 1 none."""
    crops: int = 0
    """Layers of crops to look at besides the picture, for small objects: layer i takes 4^i times as long."""
    min_area: int = 0
    """Fill holes and remove islands of fewer pixels."""
    max_memory_gb: float = 2.0
    """Bound on memory beyond the model, in GiB: a lower one asks in smaller batches."""


def parse_prompts(points: list[str], box: str | None, everything: bool) -> ImagePrompts:
    """Prompts as they are written on the command line.

    Raises:
        PromptError: not numbers, too few or too many of them, or both prompts and everything, or neither.
    """
    if everything == bool(points or box):
        raise PromptError("give --point or --box, or --everything.")
    parsed = []
    for text in points:
        numbers = _numbers(text, "--point", "X,Y or X,Y,LABEL", (2, 3))
        label = int(numbers[2]) if len(numbers) == 3 else 1
        if label not in (0, 1):
            raise PromptError(f"--point {text}: the label is 1 (object) or 0 (not), got {numbers[2]:g}.")
        parsed.append((numbers[0], numbers[1], label))
    corners = None
    if box is not None:
        x0, y0, x1, y1 = _numbers(box, "--box", "X0,Y0,X1,Y1", (4,))
        if x0 >= x1 or y0 >= y1:
            raise PromptError(f"--box {box}: X0 must be less than X1, and Y0 than Y1.")
        corners = (x0, y0, x1, y1)
    return ImagePrompts(tuple(parsed), corners)


def _numbers(text: str, option: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not np.isfinite(numbers).all():
        raise PromptError(f"{option} {text}: expected {form} in pixels.")
    return numbers


def segment(
    spec: str,
    image_file: Path,
    out: Path,
    prompts: ImagePrompts,
    everything: EverythingOptions = EverythingOptions(),
    *,
    runtime: str = "auto",
    device: str = "auto",
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write `overlay.png`, `masks.json` (COCO: images, annotations, categories) and one PNG per mask.

    Raises:
        PromptError: a point or box outside the picture. DataError: an unreadable picture.
        EverythingError: options that cannot work together.
    """
    check_target(out)
    image = read_image(image_file)
    _check_inside(prompts, image.shape[1], image.shape[0])
    opened = open_runtime(spec, runtime, device)
    masks: Sequence[np.ndarray]
    if prompts.points or prompts.box:
        records, masks = _prompted(opened, image, prompts)
    else:
        records = _everything(opened, image, everything, on_progress)
        masks = _Decoded(records)
    boxes = [prompts.box] if prompts.box else []
    drawn = overlay(image, masks, points=prompts.points, boxes=boxes, seed=seed)
    height, width = image.shape[:2]
    result = {"model": spec, "image": str(image_file), "width": width, "height": height, "masks": records}
    with atomic_folder(out) as work:
        Image.fromarray(drawn).save(work / "overlay.png")
        for index, mask in enumerate(masks):
            Image.fromarray(mask).save(work / f"mask_{index:03d}.png")
        (work / "masks.json").write_text(json.dumps(coco(result)))
    return {"out": str(out), **result}


def _check_inside(prompts: ImagePrompts, width: int, height: int) -> None:
    for x, y, _ in prompts.points:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(f"point {x:g},{y:g} lies outside the picture of {width} x {height} pixels.")
    if prompts.box and not (0 <= prompts.box[0] < width and 0 <= prompts.box[1] < height):
        raise PromptError(f"the box begins outside the picture of {width} x {height} pixels.")


def _prompted(
    runtime: Runtime, image: np.ndarray, prompts: ImagePrompts
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """One mask; for a single ambiguous point the best of three by predicted IoU, as segment-anything advises."""
    predictor = SamPredictor(runtime)
    predictor.set_image(image)
    ambiguous = len(prompts.points) == 1 and prompts.box is None
    masks, iou, _ = predictor.predict(
        point_coords=np.array([point[:2] for point in prompts.points]) if prompts.points else None,
        point_labels=np.array([point[2] for point in prompts.points]) if prompts.points else None,
        box=None if prompts.box is None else np.array(prompts.box),
        multimask_output=ambiguous,
    )
    best = int(iou.argmax())
    mask = masks[best]
    record = {
        "segmentation": encode_mask(mask),
        "bbox": _bbox(mask),
        "area": int(mask.sum()),
        "predicted_iou": float(iou[best]),
        "point_coords": [list(point[:2]) for point in prompts.points],
        "crop_box": [0, 0, image.shape[1], image.shape[0]],
    }
    return [record], [mask]


def _bbox(mask: np.ndarray) -> list[int]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(ys):
        return [0, 0, 0, 0]
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0]), int(ys[-1] - ys[0])]


def _everything(
    runtime: Runtime,
    image: np.ndarray,
    options: EverythingOptions,
    on_progress: Callable[[int, int, str], None] | None,
) -> list[dict[str, Any]]:
    generator = EverythingGenerator(
        runtime,
        options.points_per_side,
        pred_iou_thresh=options.pred_iou,
        stability_score_thresh=options.stability,
        crop_n_layers=options.crops,
        min_mask_region_area=options.min_area,
        output_mode="coco_rle",
        strategy=options.strategy,
        tau=options.tau,
        coverage=options.coverage,
        nested_thresh=options.nested,
        max_memory_bytes=int(options.max_memory_gb * 2**30),
    )
    if on_progress is None:
        return generator.generate(image)
    return generator.generate(image, lambda done, total: on_progress(done, total, "points"))


class _Decoded(Sequence[np.ndarray]):
    """The masks of records, decoded one at a time: all at once they may not fit."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return decode_mask(self._records[index]["segmentation"])


def coco(result: dict[str, Any]) -> dict[str, Any]:
    """What `segment` found, as a COCO data set of one picture; records keep their own keys beside COCO's."""
    picture = {"id": 1, "file_name": Path(result["image"]).name, "width": result["width"], "height": result["height"]}
    annotations = [
        {"id": index, "image_id": 1, "category_id": 1, "iscrowd": 0, **record}
        for index, record in enumerate(result["masks"], 1)
    ]
    return {
        "info": {"description": f"masks found by sam-edge with {result['model']}"},
        "images": [picture],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
