"""sam_edge.evaluate.everything: labels against best matches, both strategies on the same pictures."""

import numpy as np
import pytest

from sam_edge.data.rle import decode_mask
from sam_edge.errors import DataError, EverythingError
from sam_edge.evaluate.everything import evaluate_strategies, found_ious, record_ious
from sam_edge.evaluate.miou import iou
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import Thresholds
from sam_edge.segment.everything import EverythingGenerator


@pytest.fixture
def runtime(tiny_config, make_sam) -> TorchRuntime:
    thresholds = Thresholds(pred_iou=-1.0, stability=0.0, tau=0.0)
    return TorchRuntime(make_sam(tiny_config.replace(thresholds=thresholds), seed=3))


def test_a_labelled_mask_counts_with_its_best_record(runtime):
    sample = SyntheticScenes(1, 5)[0]
    records = EverythingGenerator(runtime, 5).generate(sample.image)
    wanted = [max(iou(r["segmentation"], decode_mask(a.rle)) for r in records) for a in sample.annotations]
    assert record_ious(sample, records) == pytest.approx(wanted)
    assert (record_ious(sample, []) == 0).all()


def test_a_record_counts_with_its_best_labelled_mask(runtime):
    sample = SyntheticScenes(1, 5)[0]
    records = EverythingGenerator(runtime, 5, output_mode="coco_rle").generate(sample.image)
    masks = [decode_mask(record["segmentation"]) for record in records]
    wanted = [max(iou(mask, decode_mask(a.rle)) for a in sample.annotations) for mask in masks]
    assert found_ious(sample, records) == pytest.approx(wanted)
    assert found_ious(sample, []).size == 0


def test_strategies_are_compared_on_the_same_pictures(runtime):
    scenes, heard = SyntheticScenes(3, 1), []
    grid, hierarchical = evaluate_strategies(runtime, scenes, points_per_side=6, on_image=lambda: heard.append(1))
    samples = [scenes[index] for index in range(3)]
    ious = [record_ious(s, EverythingGenerator(runtime, 6).generate(s.image)) for s in samples]
    assert grid.miou == pytest.approx(np.concatenate(ious).mean())
    assert grid.miou_per_image == pytest.approx(np.mean([part.mean() for part in ious]))
    records = [EverythingGenerator(runtime, 6, output_mode="coco_rle").generate(s.image) for s in samples]
    found = [found_ious(s, part) for s, part in zip(samples, records, strict=True)]
    assert grid.found_miou == pytest.approx(np.concatenate(found).mean())
    assert grid.records == pytest.approx(np.mean([len(part) for part in found]))
    assert (grid.strategy, grid.asked, grid.agreement, grid.images) == ("grid", 1.0, 1.0, 3)
    assert grid.masks == hierarchical.masks == sum(map(len, ious))
    assert 4 / 36 <= hierarchical.asked < 1
    # fewer points can only lose matches where nothing is suppressed differently
    assert hierarchical.miou <= grid.miou + 0.05
    assert len(heard) == 3


def test_without_tau_only_the_grid_can_be_evaluated(tiny_config, make_sam):
    runtime = TorchRuntime(make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=-1.0, stability=0.0))))
    rows = evaluate_strategies(runtime, SyntheticScenes(1), ("grid",), points_per_side=2)
    assert [row.strategy for row in rows] == ["grid"]
    with pytest.raises(EverythingError, match="calibrate"):
        evaluate_strategies(runtime, SyntheticScenes(1), points_per_side=2)


def test_no_labels_are_refused(runtime):
    with pytest.raises(DataError, match="no masks"):
        evaluate_strategies(runtime, SyntheticScenes(1).subset([]), points_per_side=2)
