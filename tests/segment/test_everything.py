"""sam_edge.segment.everything: segment-anything's generator, with the same weights, finds the same."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from segment_anything import SamAutomaticMaskGenerator

from sam_edge.models.config import Thresholds
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.runtime import TorchRuntime

LOW = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": -1.0}


def records(generator, image: np.ndarray) -> list[dict]:
    """Records in an order that small differences of their scores do not change."""
    return sorted(generator.generate(image), key=lambda r: (r["crop_box"], r["point_coords"], r["area"]))


def assert_same_records(theirs: list[dict], ours: list[dict]) -> None:
    """The same masks, up to pixels whose logit is zero but for rounding."""
    assert len(ours) == len(theirs) > 0
    for wanted, got in zip(theirs, ours, strict=True):
        assert got.keys() == wanted.keys()
        masks = [r["segmentation"] for r in (wanted, got)]
        if isinstance(masks[0], dict):
            masks = [coco_mask.decode(rle).astype(bool) for rle in masks]
        assert (masks[0] != masks[1]).mean() < 1e-3
        assert got["area"] == pytest.approx(wanted["area"], abs=5)
        assert got["bbox"] == pytest.approx(wanted["bbox"], abs=1)
        assert got["predicted_iou"] == pytest.approx(wanted["predicted_iou"], abs=1e-4)
        assert got["stability_score"] == pytest.approx(wanted["stability_score"], abs=5e-3)
        assert got["point_coords"] == wanted["point_coords"]
        assert got["crop_box"] == wanted["crop_box"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"points_per_batch": 3},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {"output_mode": "coco_rle"},
        {"min_mask_region_area": 20},
        {"box_nms_thresh": 0.3, "stability_score_offset": 0.2},
    ],
    ids=["plain", "small batches", "crops", "coco_rle", "regions removed", "other nms"],
)
def test_records_are_segment_anything_s(tiny_config, make_sam, photo, options):
    theirs = SamAutomaticMaskGenerator(make_sam(tiny_config), **{**LOW, **options})
    ours = EverythingGenerator(make_sam(tiny_config), **{**LOW, **options})
    assert_same_records(records(theirs, photo), records(ours, photo))


def test_thresholds_filter_as_segment_anything_s_do(tiny_config, make_sam, photo):
    everything = records(EverythingGenerator(make_sam(tiny_config), **LOW, box_nms_thresh=1.0), photo)
    # between two records, so that rounding cannot decide
    scores = sorted({round(r["predicted_iou"], 3) for r in everything})
    middle = len(scores) // 2
    cut = {**LOW, "pred_iou_thresh": (scores[middle] + scores[middle - 1]) / 2, "box_nms_thresh": 1.0}
    theirs = records(SamAutomaticMaskGenerator(make_sam(tiny_config), **cut), photo)
    ours = records(EverythingGenerator(make_sam(tiny_config), **cut), photo)
    if cut["pred_iou_thresh"] > 0:
        assert len(ours) < len(everything)
    assert_same_records(theirs, ours)


def test_thresholds_default_to_the_model_s_own(tiny_config, make_sam, photo):
    model = make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=0.123, stability=0.456)))
    generator = EverythingGenerator(model)
    assert (generator.pred_iou_thresh, generator.stability_score_thresh) == (0.123, 0.456)
    given = EverythingGenerator(model, pred_iou_thresh=0.0, stability_score_thresh=0.7)
    assert (given.pred_iou_thresh, given.stability_score_thresh) == (0.0, 0.7)
    # as positional arguments, like segment-anything's
    placed = EverythingGenerator(model, 8, 16, 0.5, 0.6)
    assert (placed.points_per_batch, placed.pred_iou_thresh, placed.stability_score_thresh) == (16, 0.5, 0.6)
    assert len(placed.point_grids[0]) == 64


def test_a_threshold_that_nothing_reaches_leaves_no_record(tiny_config, make_sam, photo):
    model = make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=1e6)))
    assert EverythingGenerator(model, points_per_side=3).generate(photo) == []


def test_it_runs_on_a_runtime(tiny_config, make_sam, photo):
    by_model = EverythingGenerator(make_sam(tiny_config), **LOW)
    by_runtime = EverythingGenerator(TorchRuntime(make_sam(tiny_config)), **LOW)
    assert_same_records(records(by_model, photo), records(by_runtime, photo))
