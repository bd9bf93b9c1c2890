"""Everything mode: masks of all that a grid of points finds, on any runtime."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from segment_anything import SamAutomaticMaskGenerator

from sam_edge.models.sam import EdgeSam
from sam_edge.segment.predictor import MASK_THRESHOLD, SamPredictor
from sam_edge.segment.runtime import Runtime, as_runtime


class EverythingGenerator(SamAutomaticMaskGenerator):
    """segment-anything's generator itself, with its predictor replaced by one that runs on any runtime.

    Takes its arguments and gives its records; the two thresholds default to the model's own.
    """

    def __init__(
        self,
        model: EdgeSam | Runtime,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        **options: Any,
    ) -> None:
        runtime = as_runtime(model)
        thresholds = runtime.config.thresholds
        # the base class reads one number off the model that it makes its predictor from
        size_only = SimpleNamespace(image_encoder=SimpleNamespace(img_size=runtime.config.image_size))
        super().__init__(
            size_only,
            points_per_side,
            points_per_batch,
            thresholds.pred_iou if pred_iou_thresh is None else pred_iou_thresh,
            thresholds.stability if stability_score_thresh is None else stability_score_thresh,
            **options,
        )
        self.predictor = _GeneratorPredictor(runtime)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """Mask records of an H x W x 3 uint8 RGB image, with segment-anything's keys."""
        return super().generate(image)


class _GeneratorPredictor(SamPredictor):
    """What the base class asks of `predictor.model`, which for us is a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.model = SimpleNamespace(
            mask_threshold=MASK_THRESHOLD,
            config=runtime.config,
            encode=runtime.encode,
            decode=runtime.decode,
        )
