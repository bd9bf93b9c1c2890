"""`sam-edge eval`: accuracy on labelled pictures, by prompts and in everything mode, on any runtime."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.commands.common import OnProgress, counting
from sam_edge.data import open_images, open_labelled, open_some
from sam_edge.data.dataset import Dataset
from sam_edge.data.open import find_coco
from sam_edge.data.sample import LabelledImage
from sam_edge.data.split import Split
from sam_edge.errors import DataError
from sam_edge.evaluate.agreement import evaluate_agreement
from sam_edge.evaluate.average_precision import BoxesToSegment, as_instances, evaluate_average_precision
from sam_edge.evaluate.clicks import evaluate_clicks
from sam_edge.evaluate.everything import evaluate_strategies
from sam_edge.evaluate.miou import PromptKind, evaluate_miou
from sam_edge.evaluate.walk import Kept, Share
from sam_edge.paired import Totals, compared
from sam_edge.runtimes.open import open_for_many
from sam_edge.segment.everything import STRATEGIES, Strategy
from sam_edge.segment.runtime import Runtime


def kept_at(results: Path | None, shard: str | None, key: Mapping[str, Any]) -> Kept:
    """Where results are kept, and whose pictures this process measures: a shard's, a torchrun process's, or all.

    Raises:
        DataError: a shard that is none, or one without a file.
    """
    if shard is not None:
        return Kept(results, key, Share.parse(shard))
    share = Share.of_torchrun()
    return Kept(results, key) if share is None else Kept(results, key, share, waits=share.index == 0)


def evaluate(
    spec: str,
    data: str,
    *,
    prompt: PromptKind = "box",
    multimask: bool = False,
    clicks: int | None = None,
    results: Path | None = None,
    shard: str | None = None,
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
    opened, dataset, common = _opened(spec, data, split, limit, seed, runtime, device, strict, images_root)
    asked: dict[str, Any] = {"clicks": clicks} if clicks is not None else {"prompt": prompt}
    kept = kept_at(results, shard, {**common, **asked, "multimask": multimask})
    on_image = counting(len(kept.share.of(dataset.names)), f"{prompt} mIoU", on_progress)
    if clicks is not None:
        found = evaluate_clicks(opened, dataset, clicks=clicks, multimask=multimask, kept=kept, on_image=on_image)
        return _told(common, data, {**asked, "multimask": multimask, **found.as_dict()})
    result = evaluate_miou(opened, dataset, prompt=prompt, multimask=multimask, kept=kept, on_image=on_image)
    return _told(common, data, result.as_dict())


def evaluate_ap(
    spec: str,
    instances: Path,
    *,
    detections: Path | None = None,
    multimask: bool = True,
    results: Path | None = None,
    shard: str | None = None,
    split: Split = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    strict: bool = False,
    images_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """COCO's or LVIS's mask AP of a MODEL from a detector's boxes, or the labels', over all pictures of the file or
    `limit`; of a folder, whose masks have no category, AP without classes over its `split`.

    Raises:
        DataError: a detector's boxes in a folder.
    """
    # a folder of one is that file
    instances = find_coco(instances) or instances
    of_folder = instances.is_dir()
    if of_folder and detections is not None:
        raise DataError("--detections are of the pictures of a COCO or LVIS file: give that file as --data.")
    if of_folder:
        asked = _of_folder(instances, split, limit, seed, strict, images_root)
    else:
        asked = BoxesToSegment(instances, detections, limit=limit, seed=seed, images_root=images_root)
    opened = open_for_many(spec, runtime, device)
    common = {
        "model": spec,
        "model_sha256": used_sha256(spec),
        "runtime": opened.name,
        "instances": str(instances),
        "detections": None if detections is None else str(detections),
        "multimask": multimask,
        **({"split": split} if of_folder else {}),
    }
    kept = kept_at(results, shard, common)
    on_image = counting(len(kept.share.of([str(image) for image in sorted(asked.boxes)])), "mask AP", on_progress)
    found = evaluate_average_precision(opened, asked, multimask=multimask, kept=kept, on_image=on_image)
    return _told(common, str(instances), found.as_dict())


def _of_folder(
    folder: Path, split: Split, limit: int | None, seed: int, strict: bool, images_root: Path | None
) -> BoxesToSegment:
    """The labels' boxes of a folder in SA-1B's layout.

    Raises:
        DataError: a folder of another layout.
    """
    if any(folder.glob("*.tar")):
        raise DataError(f"{folder}: AP is taken of pictures in files: unpack its tars.")
    pictures = open_some(folder, split, strict, limit=limit, seed=seed, images_root=images_root)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "instances.json"
        file.write_text(json.dumps(as_instances(pictures, open_labelled(folder, split).names)), encoding="utf-8")
        return BoxesToSegment(file, images_root=folder)


def evaluate_everything(
    spec: str,
    data: str,
    *,
    points_per_side: int = 32,
    results: Path | None = None,
    shard: str | None = None,
    split: Split = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    strict: bool = False,
    images_root: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Everything-mode mIoU and AR@1000 of both strategies, or of the grid alone where the model has no tau.

    `compared` says how far the hierarchical one is ahead in mIoU, and the grid in seconds, picture by picture.
    """
    opened, dataset, common = _opened(spec, data, split, limit, seed, runtime, device, strict, images_root)
    strategies: tuple[Strategy, ...] = STRATEGIES if opened.config.thresholds.tau is not None else ("grid",)
    common |= {"points_per_side": points_per_side}
    kept = kept_at(results, shard, {**common, "strategies": strategies})
    on_image = counting(len(kept.share.of(dataset.names)), "everything-mode mIoU", on_progress)
    rows = evaluate_strategies(
        opened, dataset, strategies, points_per_side=points_per_side, kept=kept, on_image=on_image
    )
    found = [row.as_dict() for row in rows]
    told = {key: found[0][key] for key in ("data_sha256", "left")}
    arms: dict[str, list[dict[str, list[Totals]]]]
    arms = {row.strategy: [{measure: [totals] for measure, totals in row.totals.items()}] for row in rows}
    pairs = [("hierarchical", "grid", "miou"), ("grid", "hierarchical", "seconds")]
    return _told(common, data, {**told, "strategies": found, "compared": compared(arms, pairs)})


def evaluate_against(
    spec: str,
    parent: str,
    images: str,
    *,
    results: Path | None = None,
    shard: str | None = None,
    limit: int | None = None,
    runtime: str = "auto",
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """How far the masks of a MODEL are those of the one it was made from, on pictures without labels; `limit` takes the
    first so many."""
    pictures = open_images(images, strict, limit)
    opened, other = (open_for_many(name, runtime, device) for name in (spec, parent))
    common = {
        "model": spec,
        "model_sha256": used_sha256(spec),
        "parent": parent,
        "parent_sha256": used_sha256(parent),
        "runtime": opened.name,
        "data": images,
    }
    kept = kept_at(results, shard, common)
    on_image = counting(len(kept.share.of(pictures.names)), "agreement", on_progress)
    found = evaluate_agreement(opened, other, pictures, kept=kept, on_image=on_image)
    return _told(common, images, found.as_dict())


def _opened(
    spec: str,
    data: str,
    split: Split,
    limit: int | None,
    seed: int,
    runtime: str,
    device: str,
    strict: bool,
    images_root: Path | None,
) -> tuple[Runtime, Dataset[LabelledImage], dict[str, Any]]:
    """A MODEL, the pictures, and what a result says of both."""
    opened = open_for_many(spec, runtime, device)
    dataset = open_some(data, split, strict, limit=limit, seed=seed, images_root=images_root)
    common = {
        "model": spec,
        "model_sha256": used_sha256(spec),
        "runtime": opened.name,
        "data": data,
        "split": split,
        "limit": limit,
        "seed": seed,
    }
    return opened, dataset, common


def _told(common: dict[str, Any], data: str, found: dict[str, Any]) -> dict[str, Any]:
    """A result with where it comes from."""
    models = {common["model"]: common["model_sha256"]}
    if "parent" in common:
        models[common["parent"]] = common["parent_sha256"]
    return {**common, **found, "provenance": provenance(models, {data: found["data_sha256"]})}
