"""Everything mode: masks of all that a grid of points finds, on any runtime.

Takes the arguments of segment-anything's `SamAutomaticMaskGenerator` and gives its records, on two strategies: all the
points of the grid, or TinySAM's hierarchy (section 3.4), which asks few points first and then only those that no
confident mask covers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8

from sam_edge.errors import EverythingError
from sam_edge.segment.budget import Budget
from sam_edge.segment.config import COVERAGES, Coverage
from sam_edge.segment.crop_walk import CropWalk, Filters
from sam_edge.segment.crops import crop_boxes
from sam_edge.segment.frame import require_picture
from sam_edge.segment.grid import first_pass, layer_grids
from sam_edge.segment.records import OUTPUT_MODES, Found, OutputMode, suppress, without_nested, without_small_regions
from sam_edge.segment.runtime import Runtime, as_runtime

Strategy = Literal["grid", "hierarchical"]
STRATEGIES: tuple[Strategy, ...] = ("grid", "hierarchical")
MAX_MEMORY_BYTES = 2 * 2**30


class EverythingGenerator:
    """Finds masks all over a picture.

    Args:
        model: any runtime, or a torch model of sam-edge's.
        points_per_side: points along each side of the grid; None if `point_grids` are given.
        points_per_batch: prompts to a decoder call, fewer where memory asks for it.
        pred_iou_thresh: predicted IoU that a mask must exceed; the model's own by default.
        stability_score_thresh: smallest stability score; the model's own by default.
        stability_score_offset: how far the mask threshold moves either way for the stability score, in logits.
        box_nms_thresh: largest IoU of boxes at which both masks stay.
        crop_n_layers: layers of crops to look at besides the picture, layer i of 2^i x 2^i crops.
        crop_nms_thresh: the same as `box_nms_thresh`, between crops.
        crop_overlap_ratio: share of the short side by which crops of the first layer overlap.
        crop_n_points_downscale_factor: each layer has so many times fewer points per side.
        point_grids: points in [0, 1] x [0, 1] for the picture and each layer, instead of regular grids.
        min_mask_region_area: holes and islands of fewer pixels are filled and removed; 0 leaves them.
        output_mode: form of each record's `segmentation`: binary_mask, uncompressed_rle or coco_rle.
        strategy: `grid` asks every point and finds what segment-anything finds. `hierarchical` asks a sixteenth of
            them first and skips those that lie in a confident mask: faster by the share skipped, at the price of
            parts within objects that were found whole.
        tau: confidence above which a point is answered in the hierarchical strategy; lower skips more. The model's
            own by default.
        coverage: what tau is compared with: `logit`, as in the paper, or `contrast`, which loses fewer small things
            for as many points skipped (`sam_edge.segment.coverage`). The one that the model's tau was chosen for by
            default.
        nested_thresh: largest share of a mask that may lie in a whole of no smaller predicted IoU: a mask up to eight
            times as large; 1.0 keeps parts beside wholes, as segment-anything does. The model's own by default.
        max_memory_bytes: bound on memory beyond the model, what its encoder takes for one picture, and the records. A
            lower one makes for smaller batches, and for more masks that are decoded a second time once duplicates are
            suppressed.

    Raises:
        EverythingError: arguments that cannot work together, or no tau for the hierarchical strategy.
    """

    def __init__(
        self,
        model: Runtime | Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float | None = None,
        stability_score_thresh: float | None = None,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[Float[np.ndarray, "n 2"]] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
        *,
        strategy: Strategy = "grid",
        tau: float | None = None,
        coverage: Coverage | None = None,
        nested_thresh: float | None = None,
        max_memory_bytes: int = MAX_MEMORY_BYTES,
    ) -> None:
        self.runtime = as_runtime(model)
        thresholds = self.runtime.config.thresholds
        self.point_grids = layer_grids(points_per_side, crop_n_layers, crop_n_points_downscale_factor, point_grids)
        _require("output_mode", output_mode, OUTPUT_MODES)
        _require("strategy", strategy, STRATEGIES)
        self.coverage: Coverage = thresholds.coverage if coverage is None else coverage
        _require("coverage", self.coverage, COVERAGES)
        if points_per_batch < 1 or min_mask_region_area < 0 or stability_score_offset < 0:
            raise EverythingError(
                "points_per_batch must be at least 1, min_mask_region_area and stability_score_offset at least 0; "
                f"got {points_per_batch}, {min_mask_region_area} and {stability_score_offset}."
            )
        if not 0 <= crop_overlap_ratio < 1:
            raise EverythingError(f"crop_overlap_ratio must be in [0, 1), got {crop_overlap_ratio}.")
        self.strategy, self.tau = strategy, thresholds.tau if tau is None else tau
        if strategy == "hierarchical" and self.tau is None:
            raise EverythingError(
                "the hierarchical strategy needs a tau, and this model has none: run `sam-edge calibrate` on photos of "
                "yours, or give tau yourself, or use the grid strategy."
            )
        self.filters = Filters(
            thresholds.pred_iou if pred_iou_thresh is None else pred_iou_thresh,
            thresholds.stability if stability_score_thresh is None else stability_score_thresh,
            stability_score_offset,
            box_nms_thresh,
        )
        for name, value in (("tau", self.tau or 0.0), *asdict(self.filters).items()):
            # at infinity nothing passes, which may be meant
            if math.isnan(value):
                raise EverythingError(f"{name} must be a number, got {value}.")
        self.nested_thresh = thresholds.nested if nested_thresh is None else nested_thresh
        if not 0 < self.nested_thresh <= 1:
            raise EverythingError(f"nested_thresh must be in (0, 1], got {self.nested_thresh}.")
        self.points_per_batch = points_per_batch
        self.crop_n_layers, self.crop_nms_thresh = crop_n_layers, crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area, self.output_mode = min_mask_region_area, output_mode
        self.max_memory_bytes = max_memory_bytes
        most_points = max(len(grid) for grid in self.point_grids)
        self._budget = Budget.of(self.runtime.config, most_points, points_per_batch, max_memory_bytes)

    def generate(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        original_size: tuple[int, int] | None = None,
    ) -> list[dict[str, Any]]:
        """Mask records of an RGB picture, with segment-anything's keys.

        `on_progress(done, total)` counts the points asked or skipped. `original_size` is the height and width that the
        masks are to have, where the image was reduced; crops are then of the reduced one, and not allowed.

        Raises:
            DataError: not an H x W x 3 uint8 array.
            EverythingError: crops of a reduced image.
        """
        require_picture(image)
        size = original_size or (image.shape[0], image.shape[1])
        if self.crop_n_layers and size != image.shape[:2]:
            raise EverythingError("crops are looked at for their pixels: read the picture whole, not reduced.")
        crops = self._crops(size)
        done, total = 0, sum(len(grid) for _, grid in crops)

        def on_points(count: int) -> None:
            nonlocal done
            done += count
            on_progress(done, total)

        found = [one for box, grid in crops for one in self._crop(image, size, box, grid, on_points)]
        if len(crops) > 1 and found:
            # masks of smaller crops are preferred
            boxes, crop = (np.array(part) for part in ([o.box for o in found], [o.crop_box for o in found]))
            # in float32, as segment-anything has it
            area = ((crop[:, 2] - crop[:, 0]) * (crop[:, 3] - crop[:, 1])).astype(np.float32)
            found = [found[index] for index in suppress(boxes, 1 / area, self.crop_nms_thresh)]
        if self.min_mask_region_area:
            threshold = max(self.filters.box_nms, self.crop_nms_thresh)
            found = without_small_regions(found, self.min_mask_region_area, threshold)
        found = without_nested(found, self.nested_thresh)
        return [one.record(self.output_mode) for one in found]

    def _crops(self, size: tuple[int, int]) -> list[tuple[tuple[int, int, int, int], np.ndarray]]:
        """XYXY of the picture and its crops, and the points of each."""
        boxes, layers = crop_boxes(size, self.crop_n_layers, self.crop_overlap_ratio)
        return [
            ((x0, y0, x1, y1), self.point_grids[layer])
            for (x0, y0, x1, y1), layer in zip(boxes, layers, strict=True)
            # a picture of a single row has crops without any
            if x1 > x0 and y1 > y0
        ]

    def _crop(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        size: tuple[int, int],
        box: tuple[int, int, int, int],
        grid: Float[np.ndarray, "p 2"],
        on_points: Callable[[int], None],
    ) -> list[Found]:
        walk = CropWalk(self.runtime, image, box, grid, self.filters, self._budget, size=size)
        candidates = walk.candidates()
        left = np.ones(len(grid), bool)
        if self.strategy == "hierarchical":
            assert self.tau is not None
            first = first_pass(grid)
            left[first] = False
            for passing in walk.passing(first, on_points):
                candidates.add(passing)
                left &= ~(walk.confidence(passing.upscaled, self.coverage) > self.tau)
            on_points(len(grid) - len(first) - int(left.sum()))
        for passing in walk.passing(np.flatnonzero(left), on_points):
            candidates.add(passing)
        return walk.found(candidates)


def _require(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise EverythingError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}.")
