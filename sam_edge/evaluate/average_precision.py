"""COCO's mask AP from boxes: a detector's, as SAM and TinySAM are measured (table 1), or the labels' own."""

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_edge.data.coco import CocoInstances, file_name
from sam_edge.data.image import read_image
from sam_edge.data.rle import encode_mask, to_rle
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.files import parse_json
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Runtime


@dataclass(frozen=True)
class AveragePrecision:
    """COCOeval's summary of masks, in 0..1; -1 where no label is of that size."""

    ap: float
    """Mean over IoU thresholds 0.50 to 0.95."""
    ap50: float
    ap75: float
    ap_small: float
    """Of labels below 32^2 pixels."""
    ap_medium: float
    ap_large: float
    """Of labels above 96^2 pixels."""
    ar100: float
    """Recall of at most 100 masks per picture, over the same thresholds."""
    images: int
    masks: int

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
        self.boxes: dict[int, list[Box]] = {}
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

    def segment(self, predictor: SamPredictor, image: int, batch: int, multimask: bool) -> list[dict[str, Any]]:
        """The boxes of a picture as COCO results with masks.

        Raises:
            DataError: a picture that cannot be read, or is not of the size that its labels are of.
        """
        entry, boxes = self.labels.imgs[image], self.boxes[image]
        name = file_name(entry)
        pixels = read_image(self.root / name)
        if pixels.shape[:2] != (entry["height"], entry["width"]):
            raise DataError(
                f"{name}: is {pixels.shape[1]} x {pixels.shape[0]}, its labels {entry['width']} x {entry['height']} "
                "(width x height): give the pictures that were annotated."
            )
        predictor.set_image(pixels)
        frame = predictor.frame
        assert frame is not None
        results = []
        for start in range(0, len(boxes), batch):
            chunk = boxes[start : start + batch]
            xywh = np.array([box.xywh for box in chunk], np.float32)
            corners = np.stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
            low_res, predicted = predictor.predict_low_res(
                point_coords=None,
                point_labels=None,
                boxes=frame.to_input(corners).reshape(-1, 4),
                multimask_output=multimask,
            )
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
    results: Path | None = None,
    key: Mapping[str, Any] | None = None,
    on_image: Callable[[], None] | None = None,
) -> AveragePrecision:
    """Segment every box, each picture encoded once, and summarise as COCO does.

    Args:
        multimask: three masks are asked for, and the one of highest predicted IoU is taken, as TinySAM does.
        results: a file of one line per picture, which is added to as pictures are done and goes on from where it is;
            its lines are COCO results.
        key: what the results are of; a file of another key is refused.

    Raises:
        DataError: see `BoxesToSegment.segment`; or results of something else.
    """
    done = {} if results is None else _begun(results, dict(key or {}))
    predictor = SamPredictor(runtime)
    with contextlib.ExitStack() as stack:
        log = None if results is None else stack.enter_context(results.open("a", encoding="utf-8"))
        for image in sorted(asked.boxes):
            if image not in done:
                done[image] = asked.segment(predictor, image, prompts_per_batch, multimask)
                if log is not None:
                    log.write(json.dumps({"image_id": image, "results": done[image]}) + "\n")
                    log.flush()
            if on_image is not None:
                on_image()
    with _told_by("the labels"):
        return summarise(asked.labels, [result for image in sorted(asked.boxes) for result in done[image]])


def _begun(results: Path, key: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """What a file has, by picture; a last line that a kill cut short is taken off. A new file gets its key."""
    if not results.exists():
        results.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        return {}
    text = results.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    try:
        first, *lines = [parse_json(line) for line in whole.splitlines()]
        if first["key"] != key:
            raise DataError(f"{results}: holds results of {first['key']}; choose another file.")
        found = {line["image_id"]: line["results"] for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{results}: is no file of results; choose another.") from error
    if len(whole) < len(text):
        with results.open("r+b") as file:
            file.truncate(len(whole))
    return found


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


def summarise(labels: COCO, results: list[dict[str, Any]]) -> AveragePrecision:
    """COCOeval on masks, over the pictures that the results are of."""
    images = sorted({result["image_id"] for result in results})
    with contextlib.redirect_stdout(io.StringIO()):
        # it adds areas and boxes to what it is given
        evaluation = COCOeval(labels, labels.loadRes([dict(result) for result in results]), "segm")
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50, ap75, small, medium, large, _, _, recall, *_ = (float(value) for value in evaluation.stats)
    return AveragePrecision(ap, ap50, ap75, small, medium, large, recall, len(images), len(results))
