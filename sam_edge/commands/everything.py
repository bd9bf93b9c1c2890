"""Everything mode's commands, joined from all floors: the race, the table of strategies, the calibration.

Nothing here prints. `on_progress(done, total, text)` is called along the way.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sam_edge.bench.everything import Contender, Ours, RaceOptions, Records, SegmentAnythings, race, speedups, summarise
from sam_edge.commands.common import OnProgress, add_step, counting, sample_pictures
from sam_edge.data import open_some
from sam_edge.data.sample import LabelledImage
from sam_edge.data.split import Split
from sam_edge.errors import BenchError
from sam_edge.evaluate.everything import evaluate_strategies, record_ious
from sam_edge.export.runtimes import open_runtime, resolve_device
from sam_edge.files import check_target
from sam_edge.models.checkpoint import holds_halves, save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.segment.calibrate import CalibrateOptions, calibrate
from sam_edge.segment.everything import STRATEGIES, Strategy

Picture = UInt8[np.ndarray, "h w 3"]


def race_everything(
    spec: str,
    runtimes: Sequence[str],
    *,
    data: str,
    image: Picture | None = None,
    photos: int = 4,
    points_per_side: int = 32,
    survivors: float | None = None,
    covered: float | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """segment-anything's generator, ours with both strategies in torch, and the hierarchical one on other runtimes.

    On `photos` pictures of the val split of `data`, or on `image`, which has no labels. With `covered`, and `survivors`
    beside it, tau and thresholds are chosen by quantile on these pictures; otherwise they are the model's own.

    Raises:
        BenchError: `survivors` without `covered`. EverythingError: no tau.
    """
    if survivors is not None and covered is None:
        raise BenchError("--survivors moves the thresholds, so tau must follow: give --covered, too.")
    samples = _samples(data, "val", photos, seed) if image is None else []
    pictures = [sample.image for sample in samples] if image is None else [image]
    place = resolve_device(device)
    own = open_runtime(spec, "torch", device)
    thresholds = own.config.thresholds
    if covered is not None:
        chosen = CalibrateOptions(points_per_side, covered=covered, survivors=survivors)
        thresholds = calibrate(own, pictures, chosen).thresholds
    options = RaceOptions(thresholds, points_per_side)
    # its own copy: opened as a runtime, a model's attention is rewritten
    contenders: dict[str, Contender] = {"segment-anything": SegmentAnythings(load_model(spec, place), options)}
    for strategy in STRATEGIES:
        contenders[f"{strategy}, torch"] = Ours(own, strategy, options)
    for name in dict.fromkeys(runtimes):
        if name not in ("auto", "torch"):
            contenders[f"hierarchical, {name}"] = Ours(open_runtime(spec, name, device), "hierarchical", options)

    def score(index: int, records: Records) -> list[float]:
        return record_ious(samples[index], records).tolist()

    on_run = counting(len(contenders) * len(pictures), "runs", on_progress)
    rows = summarise(race(contenders, pictures, score=score if samples else None, on_run=on_run))
    return {
        "model": spec,
        "data": data if image is None else None,
        "photos": [sample.name for sample in samples] or 1,
        "points_per_side": points_per_side,
        "thresholds": asdict(thresholds),
        **speedups(rows),
        "contenders": rows,
    }


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
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Everything-mode mIoU of both strategies, or of the grid alone where the model has no tau."""
    opened = open_runtime(spec, runtime, device)
    dataset = open_some(data, split, strict, limit=limit, seed=seed)
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


def calibrate_everything(
    spec: str,
    images: str,
    out: Path,
    options: CalibrateOptions,
    *,
    photos: int = 16,
    seed: int = 0,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Choose tau on photos, and write a checkpoint folder of the same weights that has it."""
    check_target(out)
    pictures = sample_pictures(images, photos, seed, strict=strict)
    on_photo = counting(len(pictures), "photos", on_progress)
    found = calibrate(open_runtime(spec, "torch", device), pictures, options, on_photo=on_photo)
    # opened anew: opened as a runtime, a model's attention is rewritten
    model = load_model(spec)
    settings = {**asdict(options), "photos": len(pictures)}
    add_step(model, "calibrate", settings, seed, weights_sha256(model), [Path(images).name])
    model.config = model.config.replace(thresholds=found.thresholds)
    save_checkpoint(model, out, half=holds_halves(model))
    return {"out": str(out), **found.as_dict()}


def _samples(data: str, split: Split, limit: int, seed: int) -> list[LabelledImage]:
    return [sample for sample in open_some(data, split, limit=limit, seed=seed) if sample.annotations]
