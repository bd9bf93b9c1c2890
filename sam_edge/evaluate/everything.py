"""Everything-mode mean IoU: for every labelled mask the record that matches it best (TinySAM, table 2)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import DataError
from sam_edge.segment.everything import STRATEGIES, EverythingGenerator, Strategy
from sam_edge.segment.matching import agreement, as_rle, best_ious
from sam_edge.segment.observed import ObservedRuntime
from sam_edge.segment.runtime import Runtime


@dataclass(frozen=True)
class StrategyMiou:
    """What one strategy of everything mode finds of a data set's masks, and what it takes."""

    strategy: Strategy
    miou: float
    """Mean over labelled masks."""
    miou_per_image: float
    """Mean over images of the mean over an image's masks."""
    found_miou: float
    """The same from the other side: mean over masks found of the IoU with the labelled mask that matches best. A good
    mask of what has no label counts as none, so that it says something of data sets alone that label everything."""
    records: float
    """Masks found, mean over images."""
    asked: float
    """Share of the grid's points asked, mean over images."""
    agreement: float
    """IoU of best matches with the grid strategy's records, mean over images; 1 for itself."""
    seconds: float
    """Time of an image, median."""
    masks: int
    images: int
    skipped: int
    """Images that could not be read."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def record_ious(sample: LabelledImage, records: Sequence[dict[str, Any]]) -> Float[np.ndarray, "masks"]:
    """IoU of each labelled mask with the record that matches it best."""
    return best_ious([annotation.rle for annotation in sample.annotations], records)


def found_ious(sample: LabelledImage, records: Sequence[dict[str, Any]]) -> Float[np.ndarray, "records"]:
    """IoU of each record with the labelled mask that matches it best."""
    labelled = [{"segmentation": annotation.rle} for annotation in sample.annotations]
    return best_ious([as_rle(record) for record in records], labelled)


def evaluate_strategies(
    runtime: Runtime,
    dataset: Dataset[LabelledImage],
    strategies: Sequence[Strategy] = STRATEGIES,
    *,
    points_per_side: int = 32,
    on_image: Callable[[], None] = lambda: None,
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
    rows: dict[Strategy, list[_Row]] = {strategy: [] for strategy in generators}
    for sample in dataset:
        reference: list[dict[str, Any]] = []
        for strategy, generator in generators.items() if sample.annotations else ():
            observed.reset()
            start = perf_counter()
            records = generator.generate(sample.image)
            seconds = perf_counter() - start
            reference = records if strategy == "grid" else reference
            same = 1.0 if strategy == "grid" else agreement(reference, records)
            rows[strategy].append(
                _Row(record_ious(sample, records), found_ious(sample, records), observed.points, same, seconds)
            )
        on_image()
    if not rows["grid"]:
        raise DataError("the data set has no masks to evaluate on: check --data and --split.")
    total = points_per_side**2
    return [_summary(strategy, rows[strategy], total, dataset.skipped) for strategy in strategies]


@dataclass(frozen=True)
class _Row:
    ious: Float[np.ndarray, "masks"]
    found: Float[np.ndarray, "records"]
    points: int
    agreement: float
    seconds: float


def _summary(strategy: Strategy, rows: list[_Row], points: int, skipped: int) -> StrategyMiou:
    ious, found = (np.concatenate([getattr(row, side) for row in rows]) for side in ("ious", "found"))
    return StrategyMiou(
        strategy=strategy,
        miou=float(ious.mean()),
        miou_per_image=float(np.mean([row.ious.mean() for row in rows])),
        found_miou=float(found.mean()) if len(found) else 0.0,
        records=len(found) / len(rows),
        asked=float(np.mean([row.points for row in rows])) / points,
        agreement=float(np.mean([row.agreement for row in rows])),
        seconds=float(np.median([row.seconds for row in rows])),
        masks=len(ious),
        images=len(rows),
        skipped=skipped,
    )
