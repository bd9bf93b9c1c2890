"""Everything mode on labelled pictures: mean IoU of the record that matches each labelled mask best (TinySAM, table 2),
the average recall of a hundred and of a thousand records (AR@1000; Segment Anything, table 4), and, from the other
side, how many of the records match a label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import DataError
from sam_edge.evaluate.walk import Kept, Walked, walk_labelled
from sam_edge.paired import Totals
from sam_edge.segment.everything import STRATEGIES, EverythingGenerator, Strategy
from sam_edge.segment.matching import agreement, as_rle, best_ious
from sam_edge.segment.observed import ObservedRuntime
from sam_edge.segment.runtime import Runtime

THRESHOLDS = tuple(float(value) for value in np.linspace(0.5, 0.95, 10))
"""IoU from which a mask counts as found: COCO's ten."""
MOST = (100, 1000)
"""Records of a picture that recall is of, at most."""


@dataclass(frozen=True)
class StrategyMiou:
    """What one strategy of everything mode finds of a data set's masks, and what it takes."""

    strategy: Strategy
    miou: float
    """Mean over labelled masks."""
    miou_per_image: float
    """Mean over images of the mean over an image's masks."""
    matching: float
    """Share of the masks found that match a labelled one at an IoU of 0.5. A good mask of what has no label counts as
    none, so that it says most of data sets that label everything."""
    only_whole: float
    """Share of images whose only record is more than half of the picture: nothing was told apart."""
    records: float
    """Masks found, mean over images."""
    asked: float
    """Share of the grid's points asked, mean over images."""
    agreement: float
    """IoU of best matches with the grid strategy's records, mean over images; 1 for itself."""
    seconds: float
    """Time of an image, median."""
    recall50: float
    """Share of labelled masks that the 100 records of highest predicted IoU find at an IoU of 0.5, each record one of
    them."""
    ar100: float
    """The same as a mean over IoU thresholds 0.50 to 0.95."""
    ar1000: float
    """The same of the 1000 records of highest predicted IoU."""
    masks: int
    images: int
    skipped: int
    """Images that could not be read."""
    data_sha256: str
    """Of the images and labels measured."""
    left: int = 0
    """Images that other processes have not measured yet; the numbers are of the rest."""

    totals: Mapping[str, Totals] = field(default_factory=dict)
    """Of `miou` and `seconds`, by image, a sum and of how many: what pairs two strategies."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, of the data set as a whole."""
        return {name: value for name, value in asdict(self).items() if name != "totals"}


def record_ious(sample: LabelledImage, records: Sequence[dict[str, Any]]) -> Float[np.ndarray, "masks"]:
    """IoU of each labelled mask with the record that matches it best."""
    return best_ious([annotation.rle for annotation in sample.annotations], records)


def found_ious(sample: LabelledImage, records: Sequence[dict[str, Any]]) -> Float[np.ndarray, "records"]:
    """IoU of each record with the labelled mask that matches it best."""
    labelled = [{"segmentation": annotation.rle} for annotation in sample.annotations]
    return best_ious([as_rle(record) for record in records], labelled)


def recalled(sample: LabelledImage, records: Sequence[dict[str, Any]], most: int) -> list[int]:
    """How many labelled masks the `most` records of highest predicted IoU find at each of `THRESHOLDS`.

    As COCOeval matches without categories: in the order of their scores, each record takes of the masks that are still
    free the one that it overlaps most, if by the threshold.
    """
    order = sorted(range(len(records)), key=lambda index: -records[index]["predicted_iou"])[:most]
    wanted = [annotation.rle for annotation in sample.annotations]
    if not order or not wanted:
        return [0] * len(THRESHOLDS)
    given = [as_rle(records[index]) for index in order]
    overlaps = np.asarray(coco_mask.iou(given, wanted, [0] * len(wanted)))
    counts = []
    for threshold in THRESHOLDS:
        free = np.ones(len(wanted), bool)
        for row in overlaps:
            best = int(np.where(free, row, -1.0).argmax())
            if free[best] and row[best] >= threshold:
                free[best] = False
        counts.append(int((~free).sum()))
    return counts


def evaluate_strategies(
    runtime: Runtime,
    dataset: Dataset[LabelledImage],
    strategies: Sequence[Strategy] = STRATEGIES,
    *,
    points_per_side: int = 32,
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> list[StrategyMiou]:
    """Each strategy on each image, with the model's own thresholds and tau; the grid comes first.

    Raises:
        DataError: no mask at all. EverythingError: no tau for the hierarchical strategy.
    """
    observed = ObservedRuntime(runtime)
    generators = {
        strategy: EverythingGenerator(observed, points_per_side, output_mode="coco_rle", strategy=strategy)
        for strategy in STRATEGIES
        if strategy in strategies or strategy == "grid"
    }

    def measure(sample: LabelledImage) -> dict[str, dict[str, Any]]:
        rows: dict[str, dict[str, Any]] = {}
        reference: list[dict[str, Any]] = []
        for strategy, generator in generators.items() if sample.annotations else ():
            observed.reset()
            start = perf_counter()
            records = generator.generate(sample.image)
            seconds = perf_counter() - start
            reference = records if strategy == "grid" else reference
            rows[strategy] = {
                "ious": record_ious(sample, records).tolist(),
                "found": found_ious(sample, records).tolist(),
                "recalled": [recalled(sample, records, most) for most in MOST],
                "only_whole": len(records) == 1 and 2 * records[0]["area"] > sample.image[..., 0].size,
                "points": observed.points,
                "agreement": 1.0 if strategy == "grid" else agreement(reference, records),
                "seconds": seconds,
            }
        return rows

    walked = walk_labelled(dataset, measure, kept, on_image)
    images = [rows for rows in walked.found.values() if rows]
    if not images:
        raise DataError("the data set has no masks to evaluate on: check --data and --split.")
    return [
        _summary(strategy, [rows[strategy] for rows in images], points_per_side**2, walked) for strategy in strategies
    ]


def _summary(strategy: Strategy, rows: list[dict[str, Any]], points: int, walked: Walked[Any]) -> StrategyMiou:
    ious, found = (np.concatenate([row[side] for row in rows]) for side in ("ious", "found"))
    best, all_of_them = np.sum([row["recalled"] for row in rows], 0) / len(ious)
    return StrategyMiou(
        strategy=strategy,
        miou=float(ious.mean()),
        miou_per_image=float(np.mean([np.mean(row["ious"]) for row in rows])),
        matching=float((found >= THRESHOLDS[0]).mean()) if len(found) else 0.0,
        only_whole=float(np.mean([row["only_whole"] for row in rows])),
        records=len(found) / len(rows),
        asked=float(np.mean([row["points"] for row in rows])) / points,
        agreement=float(np.mean([row["agreement"] for row in rows])),
        seconds=float(np.median([row["seconds"] for row in rows])),
        recall50=float(best[0]),
        ar100=float(best.mean()),
        ar1000=float(all_of_them.mean()),
        masks=len(ious),
        images=len(rows),
        skipped=walked.skipped,
        data_sha256=walked.data_sha256,
        left=walked.left,
        totals={
            "miou": [(float(np.sum(row["ious"])), len(row["ious"])) for row in rows],
            "seconds": [(row["seconds"], 1) for row in rows],
        },
    )
