"""`sam-edge eval`: accuracy on labelled pictures, by prompts and in everything mode, on any runtime."""

from pathlib import Path
from typing import Any

from sam_edge.commands.common import OnProgress, counting
from sam_edge.data import open_some
from sam_edge.data.split import Split
from sam_edge.evaluate.average_precision import BoxesToSegment, evaluate_average_precision
from sam_edge.evaluate.clicks import evaluate_clicks
from sam_edge.evaluate.everything import evaluate_strategies
from sam_edge.evaluate.miou import PromptKind, evaluate_miou
from sam_edge.runtimes.open import open_for_many
from sam_edge.segment.everything import STRATEGIES, Strategy


def evaluate(
    spec: str,
    data: str,
    *,
    prompt: PromptKind = "box",
    multimask: bool = False,
    clicks: int | None = None,
    split: Split = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    strict: bool = False,
    images_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Mean IoU of a MODEL on labelled data, by `prompt` or after each of `clicks`; `limit` draws so many pictures."""
    opened = open_for_many(spec, runtime, device)
    dataset = open_some(data, split, strict, limit=limit, seed=seed, images_root=images_root)
    on_image = counting(len(dataset), f"{prompt} mIoU", on_progress)
    common = {"model": spec, "runtime": opened.name, "data": data, "split": split}
    if clicks is not None:
        return {
            **common,
            "clicks": clicks,
            **evaluate_clicks(opened, dataset, clicks=clicks, on_image=on_image).as_dict(),
        }
    result = evaluate_miou(opened, dataset, prompt=prompt, multimask=multimask, on_image=on_image)
    return {**common, **result.as_dict()}


def evaluate_ap(
    spec: str,
    instances: Path,
    *,
    detections: Path | None = None,
    multimask: bool = True,
    results: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    images_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """COCO's mask AP of a MODEL from a detector's boxes, or the labels', over all pictures of the file or `limit`."""
    asked = BoxesToSegment(instances, detections, limit=limit, seed=seed, images_root=images_root)
    opened = open_for_many(spec, runtime, device)
    boxes = None if detections is None else str(detections)
    key = {"model": spec, "instances": str(instances), "detections": boxes, "multimask": multimask}
    on_image = counting(len(asked.boxes), "mask AP", on_progress)
    found = evaluate_average_precision(opened, asked, multimask=multimask, results=results, key=key, on_image=on_image)
    return {**key, "runtime": opened.name, **found.as_dict()}


def evaluate_everything(
    spec: str,
    data: str,
    *,
    points_per_side: int = 32,
    split: Split = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    strict: bool = False,
    images_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Everything-mode mIoU of both strategies, or of the grid alone where the model has no tau."""
    opened = open_for_many(spec, runtime, device)
    dataset = open_some(data, split, strict, limit=limit, seed=seed, images_root=images_root)
    strategies: tuple[Strategy, ...] = STRATEGIES if opened.config.thresholds.tau is not None else ("grid",)
    on_image = counting(len(dataset), "everything-mode mIoU", on_progress)
    rows = evaluate_strategies(opened, dataset, strategies, points_per_side=points_per_side, on_image=on_image)
    return {
        "model": spec,
        "runtime": opened.name,
        "data": data,
        "split": split,
        "points_per_side": points_per_side,
        "strategies": [row.as_dict() for row in rows],
    }
