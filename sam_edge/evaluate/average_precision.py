"""COCO's and LVIS's mask AP from boxes: a detector's, as SAM and TinySAM are measured (table 1), or the labels' own.

LVIS (Gupta, Dollar and Girshick, 2019) labels things of some categories only in each picture. A detection of a category
that was not looked for there counts neither way, nor does an unmatched one of a category that was not labelled to the
end; and a picture has its 300 detections of highest score, whatever their category.
"""

import contextlib
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_edge.data.coco import CocoInstances, file_name
from sam_edge.data.dataset import Dataset
from sam_edge.data.image import read_image
from sam_edge.data.rle import encode_mask, to_rle
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.evaluate.walk import Kept, walk
from sam_edge.files import parse_json
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Runtime

COCO_MASKS, LVIS_MASKS = 100, 300
"""Of highest score that count: of a picture and category, and of a picture."""


@dataclass(frozen=True)
class AveragePrecision:
    """COCOeval's or LVIS's summary of masks, in 0..1; -1 where no label is of that size."""

    ap: float
    """Mean over IoU thresholds 0.50 to 0.95."""
    ap50: float
    ap75: float
    ap_small: float
    """Of labels below 32^2 pixels."""
    ap_medium: float
    ap_large: float
    """Of labels above 96^2 pixels."""
    recall: float
    """Mean recall over the same thresholds, of at most 100 masks per picture and category (LVIS: 300 per picture)."""
    style: Literal["coco", "lvis"]
    """Whose rules: LVIS's where the file says which categories were looked for in a picture."""
    images: int
    masks: int
    data_sha256: str = ""
    """Of the pictures and boxes measured."""
    left: int = 0
    """Pictures that other processes have not measured yet; the numbers are of the rest."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Box:
    """A box to be segmented."""

    xywh: tuple[float, float, float, float]
    category: int
    score: float | None
    """The detector's; None of a label's box, which the predicted IoU then stands for."""


def as_instances(dataset: Dataset[LabelledImage], names: Sequence[str]) -> dict[str, Any]:
    """A labelled data set as COCO instances, all of one category, since it has none: AP without classes.

    Args:
        names: of all pictures that there are, of which the data set may be a part: a picture's id is its place there.
    """
    ids = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in dataset:
        height, width = sample.image.shape[:2]
        image = ids[sample.name]
        images.append({"id": image, "file_name": sample.name, "height": height, "width": width})
        for annotation in sample.annotations:
            counts = annotation.rle["counts"]
            rle = {**annotation.rle, "counts": counts.decode() if isinstance(counts, bytes) else counts}
            told = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
            box = {"bbox": list(annotation.bbox_xywh), "area": annotation.area}
            annotations.append({**told, **box, "segmentation": rle})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


class BoxesToSegment:
    """The pictures of a COCO file and the boxes to be asked for in each."""

    def __init__(
        self,
        instances: Path,
        detections: Path | None = None,
        *,
        limit: int | None = None,
        seed: int = 0,
        images_root: Path | None = None,
    ) -> None:
        """`detections` is a list of COCO results with boxes (`coco_instances_results.json` of detectron2); `limit`
        draws so many of the pictures, which lie in `images_root`, or near the file.

        Raises:
            DataError: a file that is not what it should be, or detections of other pictures.
        """
        # finds the pictures, and says what is wrong with the file
        self.root = CocoInstances(instances, images_root).images_root
        with _told_by(instances), contextlib.redirect_stdout(io.StringIO()):
            self.labels = COCO(str(instances))
            _check(self.labels)
        found = self._of_labels() if detections is None else self._detected(detections)
        # where a detector found nothing it missed what is labelled
        self.boxes: dict[int, list[Box]] = {} if detections is None else {image: [] for image in self.labels.imgs}
        for image, box in found:
            self.boxes.setdefault(image, []).append(box)
        if not self.boxes.keys() <= self.labels.imgs.keys():
            raise DataError(f"{detections}: is of other pictures than {instances}; give the detections of these.")
        if limit is not None and limit < len(self.boxes):
            drawn = np.random.default_rng(seed).choice(sorted(self.boxes), limit, replace=False).tolist()
            self.boxes = {image: self.boxes[image] for image in drawn}

    def _of_labels(self) -> Iterator[tuple[int, Box]]:
        for entry in self.labels.anns.values():
            if not entry.get("iscrowd"):
                yield entry["image_id"], Box(tuple(entry["bbox"]), entry["category_id"], None)

    def _detected(self, file: Path) -> Iterator[tuple[int, Box]]:
        try:
            for entry in parse_json(file.read_text(encoding="utf-8")):
                x, y, width, height = map(float, entry["bbox"])
                yield entry["image_id"], Box((x, y, width, height), entry["category_id"], float(entry["score"]))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); check the path.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: no list of COCO results with bbox, score and category_id ({error!r}).") from error

    def read(self, image: int) -> UInt8[np.ndarray, "h w 3"]:
        """A picture.

        Raises:
            DataError: a picture that cannot be read, or is not of the size that its labels are of.
        """
        entry = self.labels.imgs[image]
        name = file_name(entry)
        pixels = read_image(self.root / name)
        if pixels.shape[:2] != (entry["height"], entry["width"]):
            raise DataError(
                f"{name}: is {pixels.shape[1]} x {pixels.shape[0]}, its labels {entry['width']} x {entry['height']} "
                "(width x height): give the pictures that were annotated."
            )
        return pixels

    def segment(
        self, predictor: SamPredictor, image: int, pixels: UInt8[np.ndarray, "h w 3"], batch: int, multimask: bool
    ) -> list[dict[str, Any]]:
        """The boxes of a picture as COCO results with masks."""
        boxes = self.boxes[image]
        predictor.set_image(pixels)
        frame = predictor.frame
        assert frame is not None
        results = []
        for start in range(0, len(boxes), batch):
            chunk = boxes[start : start + batch]
            corners = frame.boxes_to_input([box.xywh for box in chunk])
            low_res, predicted = predictor.predict_low_res(None, None, corners, multimask_output=multimask)
            for box, logits, scores in zip(chunk, low_res, predicted, strict=True):
                best = int(scores.argmax())
                mask = predictor.masks(logits[None, best : best + 1])[0, 0]
                results.append(
                    {
                        "image_id": image,
                        "category_id": box.category,
                        "segmentation": encode_mask(mask),
                        "score": float(scores[best]) if box.score is None else box.score,
                    }
                )
        return results


def evaluate_average_precision(
    runtime: Runtime,
    asked: BoxesToSegment,
    *,
    multimask: bool = True,
    prompts_per_batch: int = 64,
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> AveragePrecision:
    """Segment every box, each picture encoded once, and summarise as COCO does, or LVIS.

    Args:
        multimask: three masks are asked for, and the one of highest predicted IoU is taken, as TinySAM does.
        kept: where each picture's masks are kept as they are found; its lines hold COCO results.

    Raises:
        DataError: see `BoxesToSegment.read`.
    """
    predictor = SamPredictor(runtime)
    images = sorted(asked.boxes)

    def measure(numbers: list[int]) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
        for number in numbers:
            image = images[number]
            if not asked.boxes[image]:
                yield number, hashlib.sha256(str(image).encode()).hexdigest(), []
                continue
            pixels = asked.read(image)
            digest = hashlib.sha256(pixels.tobytes() + repr(asked.boxes[image]).encode()).hexdigest()
            yield number, digest, asked.segment(predictor, image, pixels, prompts_per_batch, multimask)

    walked = walk([str(image) for image in images], measure, kept, on_image)
    done = [int(name) for name in walked.found]
    with _told_by("the labels"):
        found = summarise(asked.labels, [result for results in walked.found.values() for result in results], done)
    return replace(found, data_sha256=walked.data_sha256, left=walked.left)


@contextlib.contextmanager
def _told_by(what: Path | str) -> Iterator[None]:
    """What pycocotools, which checks nothing, finds wrong with labels, as one line."""
    try:
        yield
    except SamEdgeError:
        raise
    except Exception as error:
        raise DataError(f"{what}: not COCO instances that pycocotools can evaluate ({error!r:.120}).") from error


def _check(labels: COCO) -> None:
    """Raises DataError for a label that pycocotools would end the process over."""
    for number, entry in labels.anns.items():
        image = labels.imgs[entry["image_id"]]
        if not all(math.isfinite(float(side)) for side in (*entry["bbox"], entry["area"])) or len(entry["bbox"]) != 4:
            raise DataError(f"annotation {number}: bbox must be four numbers and area one.")
        try:
            to_rle(entry["segmentation"], int(image["height"]), int(image["width"]))
        except DataError as error:
            raise DataError(f"annotation {number}: {error} AP counts every label: mend this one.") from error


def summarise(labels: COCO, results: list[dict[str, Any]], images: Sequence[int]) -> AveragePrecision:
    """AP of masks over some pictures; those without a result count, too.

    Raises:
        DataError: no result at all.
    """
    if not results:
        raise DataError("no box was segmented, of which an AP could be taken: check --data and --detections.")
    lvis = any("not_exhaustive_category_ids" in entry for entry in labels.imgs.values())
    kind, style, most = (LvisEval, "lvis", LVIS_MASKS) if lvis else (COCOeval, "coco", COCO_MASKS)
    # it adds areas and boxes to what it is given
    given = [dict(result) for result in results]
    if lvis:
        by_image: dict[int, list[dict[str, Any]]] = {}
        for result in given:
            by_image.setdefault(result["image_id"], []).append(result)
        given = [
            result
            for own in by_image.values()
            for result in sorted(own, key=lambda result: -result["score"])[:LVIS_MASKS]
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        for entry in labels.anns.values():
            entry.setdefault("iscrowd", 0)
        evaluation = kind(labels, labels.loadRes(given), "segm")
        evaluation.params.imgIds = sorted(images)
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()
    # thresholds, recalls, categories, sizes, numbers of masks
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    sizes = [_mean(precision[:, :, :, size]) for size in range(4)]
    return AveragePrecision(
        ap=sizes[0],
        ap50=_mean(precision[0, :, :, 0]),
        ap75=_mean(precision[5, :, :, 0]),
        ap_small=sizes[1],
        ap_medium=sizes[2],
        ap_large=sizes[3],
        recall=_mean(recall[:, :, 0]),
        style=style,  # type: ignore[arg-type]
        images=len(images),
        masks=len(results),
    )


def _mean(values: np.ndarray) -> float:
    """Of what is known; -1 where nothing is."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


class LvisEval(COCOeval):
    """COCOeval by LVIS's rules."""

    def _prepare(self) -> None:
        super()._prepare()
        for (image, category), detections in list(self._dts.items()):
            looked_for = (image, category) in self._gts or category in self._entry(image, "neg_category_ids")
            self._dts[image, category] = detections if looked_for else []

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:
        """Of one picture and category: unmatched detections do not count where not all things were labelled."""
        found = super().evaluateImg(imgId, catId, aRng, maxDet)
        if found is not None and catId in self._entry(imgId, "not_exhaustive_category_ids"):
            found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
        return found

    def _entry(self, image: int, key: str) -> list[int]:
        return self.cocoGt.imgs[image].get(key, [])
