"""sam_edge.evaluate.everything: labels against best matches, both strategies on the same pictures."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.errors import DataError, EverythingError
from sam_edge.evaluate.everything import evaluate_strategies, found_ious, recalled, record_ious
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
    assert grid.matching == pytest.approx((np.concatenate(found) >= 0.5).mean())
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


def test_recall_is_cocoevals_without_categories():
    """AR@1000 by hand: one category, a thousand detections, no size left out."""
    rng = np.random.default_rng(6)
    images, annotations, detections, found = [], [], [], np.zeros(10)
    for number, sample in enumerate(SyntheticScenes(6, 1), 1):
        height, width = sample.image.shape[:2]
        images.append({"id": number, "height": height, "width": width})
        records = []
        for annotation in sample.annotations:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            entry |= {"area": annotation.area, "bbox": list(annotation.bbox_xywh), "segmentation": annotation.rle}
            annotations.append(entry)
            for shift in rng.integers(-4, 5, int(rng.integers(0, 4))):
                rle = encode_mask(np.roll(annotation.mask(), shift, 1))
                records.append({"segmentation": rle, "predicted_iou": float(rng.random())})
        found += recalled(sample, records, 1000)
        detections += [
            {"image_id": number, "category_id": 1, "score": one["predicted_iou"], "segmentation": one["segmentation"]}
            for one in records
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        labels = COCO()
        labels.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        labels.createIndex()
        evaluation = COCOeval(labels, labels.loadRes(detections), "segm")
        evaluation.params.maxDets = [1, 10, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    wanted = evaluation.eval["recall"][:, 0, 0, 2]
    assert found / len(annotations) == pytest.approx(wanted, abs=1e-9)
    assert 0.2 < wanted[-1] < wanted[0] < 0.95


def test_average_recall_is_over_all_masks_of_all_pictures(runtime):
    scenes = SyntheticScenes(3, 1)
    (row,) = evaluate_strategies(runtime, scenes, ("grid",), points_per_side=6)
    generator = EverythingGenerator(runtime, 6, output_mode="coco_rle")
    found = [generator.generate(sample.image) for sample in scenes]
    for most, recall in ((100, row.ar100), (1000, row.ar1000)):
        counts = np.sum([recalled(sample, records, most) for sample, records in zip(scenes, found, strict=True)], 0)
        assert recall == pytest.approx(counts.mean() / row.masks)
    assert row.recall50 == pytest.approx(
        sum(recalled(s, f, 100)[0] for s, f in zip(scenes, found, strict=True)) / row.masks
    )


def test_one_mask_over_most_of_a_picture_tells_nothing_apart(runtime, monkeypatch):
    scenes = SyntheticScenes(4, 1)
    shares = iter(([0.8], [0.4], [0.8, 0.8], []))

    def generate(self, image):
        records = []
        for share in next(shares):
            mask = np.zeros(image.shape[:2], bool)
            mask[:, : int(share * mask.shape[1])] = True
            records.append({"segmentation": encode_mask(mask), "area": int(mask.sum()), "predicted_iou": 0.5})
        return records

    monkeypatch.setattr(EverythingGenerator, "generate", generate)
    (row,) = evaluate_strategies(runtime, scenes, ("grid",), points_per_side=2)
    assert row.only_whole == 0.25


def test_exact_records_recall_everything_and_one_record_one_mask():
    sample = SyntheticScenes(1, 5)[0]
    exact = [{"segmentation": annotation.rle, "predicted_iou": 0.5} for annotation in sample.annotations]
    assert recalled(sample, exact, 1000) == [len(exact)] * 10
    assert recalled(sample, exact[:1] * 3, 1000) == [1] * 10
    assert recalled(sample, exact, 2) == [2] * 10
    assert recalled(sample, [], 1000) == [0] * 10
