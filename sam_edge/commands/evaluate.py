"""`sam-edge eval`: mean IoU on labelled pictures, on any runtime."""

from typing import Any

from sam_edge.commands.common import OnProgress, counting
from sam_edge.data import open_some
from sam_edge.data.split import Split
from sam_edge.evaluate.clicks import evaluate_clicks
from sam_edge.evaluate.miou import PromptKind, evaluate_miou
from sam_edge.export.runtimes import open_runtime


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
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Mean IoU of a MODEL on labelled data, by `prompt` or after each of `clicks`; `limit` draws so many pictures."""
    opened = open_runtime(spec, runtime, device)
    dataset = open_some(data, split, strict, limit=limit, seed=seed)
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
