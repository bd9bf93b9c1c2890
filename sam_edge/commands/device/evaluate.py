"""`sam-edge eval`: accuracy on labelled pictures, by prompts and in everything mode, on any runtime."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from sam_edge.evaluate.everything import MOST, evaluate_strategies
from sam_edge.evaluate.miou import PromptKind, evaluate_miou
from sam_edge.evaluate.walk import Kept, Share
from sam_edge.paired import Totals, compared
from sam_edge.runtimes.open import open_for_many
from sam_edge.segment.everything import STRATEGIES, Strategy
from sam_edge.segment.runtime import Runtime


@dataclass(frozen=True)
class Pictures:
    """What a model is evaluated on."""

    data: str
    """Labelled pictures: a folder in SA-1B's layout, tars of it, COCO instances json, or `synthetic`."""
    split: Split = "val"
    """Part of them, by the hash of the file name."""
    limit: int | None = None
    """So many of them, drawn by the seed."""
    seed: int = 0
    strict: bool = False
    """Stop at one that cannot be read instead of leaving it out."""
    images_root: Path | None = None
    """The folder of a COCO file's pictures, where they are not near it."""

    def open(self) -> Dataset[LabelledImage]:
        """The pictures. Raises DataError: there are none."""
        return open_some(
            self.data, self.split, self.strict, limit=self.limit, seed=self.seed, images_root=self.images_root
        )


@dataclass(frozen=True)
class Run:
    """What runs a model, and where it is kept what is found."""

    runtime: str = "auto"
    device: str = "auto"
    results: Path | None = None
    """A line per picture, as it is found; a later run goes on there."""
    shard: str | None = None
    """`K/N`: only the K-th part of N."""
    on_progress: OnProgress | None = None

    def kept(self, key: Mapping[str, Any]) -> Kept:
        """The results so far, and whose pictures this process measures: a shard's, a torchrun process's, or all.

        Raises:
            DataError: a shard that is none, or one without a file.
        """
        if self.shard is not None:
            return Kept(self.results, key, Share.parse(self.shard))
        share = Share.of_torchrun()
        return Kept(self.results, key) if share is None else Kept(self.results, key, share, waits=share.index == 0)

    def counting(self, kept: Kept, names: Sequence[str], text: str) -> Callable[[], None]:
        """A call per picture of those `names` that this process measures."""
        return counting(len(kept.share.of(names)), text, self.on_progress)


def evaluate(
    spec: str,
    pictures: Pictures,
    run: Run,
    *,
    prompt: PromptKind = "box",
    multimask: bool = False,
    clicks: int | None = None,
) -> dict[str, Any]:
    """Mean IoU of a MODEL, by `prompt` or after each of `clicks`."""
    opened, dataset, common = _opened(spec, pictures, run)
    asked: dict[str, Any] = {"clicks": clicks} if clicks is not None else {"prompt": prompt}
    kept = run.kept({**common, **asked, "multimask": multimask})
    on_image = run.counting(kept, dataset.names, f"{prompt} mIoU")
    if clicks is not None:
        found = evaluate_clicks(opened, dataset, clicks=clicks, multimask=multimask, kept=kept, on_image=on_image)
        return _told(common, pictures.data, {**asked, "multimask": multimask, **found.as_dict()})
    result = evaluate_miou(opened, dataset, prompt=prompt, multimask=multimask, kept=kept, on_image=on_image)
    return _told(common, pictures.data, result.as_dict())


def evaluate_ap(
    spec: str, pictures: Pictures, run: Run, *, detections: Path | None = None, multimask: bool = True
) -> dict[str, Any]:
    """COCO's or LVIS's mask AP of a MODEL from a detector's boxes, or the labels', over all pictures of a file or as
    many as are wanted; of a folder, whose masks have no category, AP without classes over its split.

    Raises:
        DataError: a detector's boxes in a folder.
    """
    # a folder of one is that file
    instances = find_coco(Path(pictures.data)) or Path(pictures.data)
    of_folder = instances.is_dir()
    if of_folder and detections is not None:
        raise DataError("--detections are of the pictures of a COCO or LVIS file: give that file as --data.")
    if of_folder:
        asked = _of_folder(instances, pictures)
    else:
        asked = BoxesToSegment(
            instances, detections, limit=pictures.limit, seed=pictures.seed, images_root=pictures.images_root
        )
    opened = open_for_many(spec, run.runtime, run.device)
    common = {
        "model": spec,
        "model_sha256": used_sha256(spec),
        "runtime": opened.name,
        "instances": str(instances),
        "detections": None if detections is None else str(detections),
        "multimask": multimask,
        **({"split": pictures.split} if of_folder else {}),
    }
    kept = run.kept(common)
    on_image = run.counting(kept, [str(image) for image in sorted(asked.boxes)], "mask AP")
    found = evaluate_average_precision(opened, asked, multimask=multimask, kept=kept, on_image=on_image)
    return _told(common, str(instances), found.as_dict())


def _of_folder(folder: Path, pictures: Pictures) -> BoxesToSegment:
    """The labels' boxes of a folder in SA-1B's layout.

    Raises:
        DataError: a folder of another layout.
    """
    if any(folder.glob("*.tar")):
        raise DataError(f"{folder}: AP is taken of pictures in files: unpack its tars.")
    names = open_labelled(folder, pictures.split).names
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "instances.json"
        file.write_text(json.dumps(as_instances(pictures.open(), names)), encoding="utf-8")
        return BoxesToSegment(file, images_root=folder)


def evaluate_everything(spec: str, pictures: Pictures, run: Run, *, points_per_side: int = 32) -> dict[str, Any]:
    """Everything-mode mIoU and recall of both strategies, or of the grid alone where the model has no tau.

    `compared` says how far the hierarchical one is ahead in mIoU, and the grid in seconds, picture by picture.
    """
    opened, dataset, common = _opened(spec, pictures, run)
    strategies: tuple[Strategy, ...] = STRATEGIES if opened.config.thresholds.tau is not None else ("grid",)
    common |= {"points_per_side": points_per_side}
    kept = run.kept({**common, "strategies": strategies, "recalled": MOST})
    on_image = run.counting(kept, dataset.names, "everything-mode mIoU")
    rows = evaluate_strategies(
        opened, dataset, strategies, points_per_side=points_per_side, kept=kept, on_image=on_image
    )
    found = [row.as_dict() for row in rows]
    told = {key: found[0][key] for key in ("data_sha256", "left")}
    arms: dict[str, list[dict[str, list[Totals]]]]
    arms = {row.strategy: [{measure: [totals] for measure, totals in row.totals.items()}] for row in rows}
    pairs = [("hierarchical", "grid", "miou"), ("grid", "hierarchical", "seconds")]
    return _told(common, pictures.data, {**told, "strategies": found, "compared": compared(arms, pairs)})


def evaluate_against(spec: str, parent: str, pictures: Pictures, run: Run) -> dict[str, Any]:
    """How far the masks of a MODEL are those of the one it was made from, on pictures whose labels do not matter; a
    limit takes the first so many of all."""
    images = open_images(pictures.data, pictures.strict, pictures.limit)
    opened, other = (open_for_many(name, run.runtime, run.device) for name in (spec, parent))
    common = {
        "model": spec,
        "model_sha256": used_sha256(spec),
        "parent": parent,
        "parent_sha256": used_sha256(parent),
        "runtime": opened.name,
        "data": pictures.data,
    }
    kept = run.kept(common)
    on_image = run.counting(kept, images.names, "agreement")
    found = evaluate_agreement(opened, other, images, kept=kept, on_image=on_image)
    return _told(common, pictures.data, found.as_dict())


def _opened(spec: str, pictures: Pictures, run: Run) -> tuple[Runtime, Dataset[LabelledImage], dict[str, Any]]:
    """A MODEL, the pictures, and what a result says of both."""
    opened = open_for_many(spec, run.runtime, run.device)
    common = {
        "model": spec,
        "model_sha256": used_sha256(spec),
        "runtime": opened.name,
        "data": pictures.data,
        "split": pictures.split,
        "limit": pictures.limit,
        "seed": pictures.seed,
    }
    return opened, pictures.open(), common


def _told(common: dict[str, Any], data: str, found: dict[str, Any]) -> dict[str, Any]:
    """A result with where it comes from."""
    models = {common["model"]: common["model_sha256"]}
    if "parent" in common:
        models[common["parent"]] = common["parent_sha256"]
    return {**common, **found, "provenance": provenance(models, {data: found["data_sha256"]})}
