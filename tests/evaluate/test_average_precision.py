"""COCO's AP of masks from boxes, on a runtime whose answers are plain."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.cocoeval import COCOeval

from sam_edge.data import CocoInstances
from sam_edge.data.rle import encode_mask
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.evaluate.average_precision import (
    BoxesToSegment,
    as_instances,
    evaluate_average_precision,
    summarise,
)
from sam_edge.evaluate.walk import Kept
from tests.drawing import DrawingRuntime

SIZE = 64
BOXES = {1: [(4, 4, 40, 30), (20, 36, 24, 20)], 2: [(10, 8, 44, 50)]}


def ellipse(box: tuple[int, int, int, int]) -> np.ndarray:
    """What the runtime draws in a box."""
    x, y, width, height = box
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    return ((columns - x - width / 2) * 2 / width) ** 2 + ((rows - y - height / 2) * 2 / height) ** 2 <= 1


@pytest.fixture
def instances(tmp_path):
    """Two pictures whose things are ellipses, of two categories."""
    images, annotations = [], []
    for number, boxes in BOXES.items():
        Image.fromarray(np.full((SIZE, SIZE, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE})
        for box in boxes:
            mask = encode_mask(ellipse(box))
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + box[0] % 2, "iscrowd": 0}
            annotations.append({**entry, "bbox": box, "area": int(ellipse(box).sum()), "segmentation": mask})
    file = tmp_path / "instances.json"
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    file.write_text(json.dumps(content))
    return file


def test_masks_of_the_labels_boxes_are_counted_as_coco_counts_them(instances, capsys):
    found = evaluate_average_precision(DrawingRuntime(), BoxesToSegment(instances), multimask=False)
    assert found.ap50 == found.ap75 == 1
    # an ellipse of cells is not one of pixels
    assert 0.8 < found.ap <= 1
    assert found.ap_small == -1 or found.ap_small > 0.5
    assert (found.images, found.masks) == (2, 3)
    assert capsys.readouterr().out == ""


def test_labels_without_categories_are_instances_of_one(instances, tmp_path):
    """AP of a folder: the same as the file's with all of its categories made one."""
    whole = CocoInstances(instances)
    found = as_instances(whole, whole.names)
    told = json.loads(instances.read_text())
    for entry in told["annotations"]:
        entry |= {"category_id": 1, "bbox": [float(side) for side in entry["bbox"]]}
    one = tmp_path / "one.json"
    one.write_text(json.dumps({**told, "categories": [{"id": 1, "name": "object"}]}))
    made = tmp_path / "made.json"
    made.write_text(json.dumps(found))
    runs = [
        evaluate_average_precision(DrawingRuntime(), BoxesToSegment(file, images_root=tmp_path), multimask=False)
        for file in (one, made)
    ]
    assert runs[0] == runs[1]
    # a part of the pictures keeps the ids of the whole
    (left,) = as_instances(whole.subset([1]), whole.names)["images"]
    assert left == {"id": 2, "file_name": "2.png", "height": SIZE, "width": SIZE}


def test_exact_masks_have_all_of_it_and_others_none(instances):
    asked = BoxesToSegment(instances)
    exact = [
        {"image_id": e["image_id"], "category_id": e["category_id"], "segmentation": e["segmentation"], "score": 0.5}
        for e in asked.labels.anns.values()
    ]
    assert summarise(asked.labels, exact, [1, 2]).ap == pytest.approx(1)
    swapped = [{**result, "category_id": 3 - result["category_id"]} for result in exact]
    assert summarise(asked.labels, swapped, [1, 2]).ap == 0


def test_a_detectors_boxes_keep_their_scores_and_its_mistakes_cost(instances, tmp_path):
    detected = [
        {"image_id": image, "category_id": 1 + box[0] % 2, "bbox": list(box), "score": 0.9}
        for image, boxes in BOXES.items()
        for box in boxes
    ]
    file = tmp_path / "coco_instances_results.json"
    file.write_text(json.dumps(detected))
    right = evaluate_average_precision(DrawingRuntime(), BoxesToSegment(instances, file), multimask=False)
    assert right.ap50 == 1
    wrong = [{**detected[0], "bbox": [30, 2, 6, 6], "score": 0.99}, *detected]
    file.write_text(json.dumps(wrong))
    results = tmp_path / "results.jsonl"
    found = evaluate_average_precision(DrawingRuntime(), BoxesToSegment(instances, file), kept=Kept(results))
    assert found.masks == 4
    assert found.ap < right.ap
    scores = [r["score"] for line in results.read_text().splitlines()[1:] for r in json.loads(line)["found"]]
    assert sorted(scores) == [0.9, 0.9, 0.9, 0.99]


def test_results_go_on_where_a_kill_left_them(instances, tmp_path):
    results, runtime = tmp_path / "results.jsonl", DrawingRuntime()
    whole = evaluate_average_precision(runtime, BoxesToSegment(instances), kept=Kept(results, {"model": "a"}))
    text = results.read_text()
    results.write_text(text[:-40])
    again = evaluate_average_precision(runtime, BoxesToSegment(instances), kept=Kept(results, {"model": "a"}))
    assert again == whole
    assert results.read_text() == text
    assert runtime.encoded == 3
    with pytest.raises(SamEdgeError, match="holds results of another model"):
        evaluate_average_precision(runtime, BoxesToSegment(instances), kept=Kept(results, {"model": "b"}))


def test_a_limit_draws_pictures(instances):
    drawn = [set(BoxesToSegment(instances, limit=1, seed=seed).boxes) for seed in range(8)]
    assert {1} in drawn
    assert {2} in drawn


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"segmentation": [[1, 1, 9, 2**63, 9, 9]]}, "annotation 1: a polygon is not"),
        ({"segmentation": {"size": [SIZE, SIZE], "counts": "0" * 99}}, "annotation 1: "),
        ({"bbox": [1, 1, 4]}, "annotation 1: bbox must be four numbers"),
        ({"bbox": [1, float("nan"), 4, 4]}, "annotation 1: bbox must be four numbers"),
        ({"area": "large"}, "not COCO instances that pycocotools can evaluate"),
    ],
)
def test_a_label_that_pycocotools_would_end_the_process_over_is_named(instances, entry, message):
    content = json.loads(instances.read_text())
    content["annotations"][0] |= entry
    instances.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        BoxesToSegment(instances)


def test_what_does_not_belong_together_is_refused(instances, tmp_path):
    file = tmp_path / "detections.json"
    file.write_text(json.dumps([{"image_id": 7, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 1}]))
    with pytest.raises(DataError, match="is of other pictures"):
        BoxesToSegment(instances, file)
    file.write_text("{}x")
    with pytest.raises(DataError, match="no list of COCO results"):
        BoxesToSegment(instances, file)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png: is 32 x 32, its labels 64 x 64"):
        evaluate_average_precision(DrawingRuntime(), BoxesToSegment(instances))


def moved(rng: np.random.Generator, box: tuple[int, int, int, int]) -> np.ndarray:
    """An ellipse somewhat beside its box."""
    x, y, width, height = box
    dx, dy, wider = rng.integers(-4, 5, 3).tolist()
    return ellipse((x + dx, y + dy, width + wider, height))


@pytest.fixture
def many(tmp_path):
    """Thirty pictures of up to five things of three categories, some tiny, with a federated data set's lists."""
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for number in range(1, 31):
        Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / f"{number}.png")
        known = {"neg_category_ids": [3], "not_exhaustive_category_ids": [2] if number % 3 == 0 else []}
        images.append({"id": number, "file_name": f"{number}.png", "height": SIZE, "width": SIZE, **known})
        for _ in range(int(rng.integers(1, 6))):
            x, y = rng.integers(0, 30, 2).tolist()
            width, height = rng.integers(4, 34, 2).tolist()
            mask = ellipse((x, y, width, height))
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": int(rng.integers(1, 3))}
            entry |= {"bbox": [x, y, width, height], "area": int(mask.sum()), "segmentation": encode_mask(mask)}
            annotations.append({**entry, "iscrowd": 0})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n, "name": str(n)} for n in (1, 2, 3)],
    }
    file = tmp_path / "instances.json"

    def write(federated: bool):
        plain = [{key: value for key, value in entry.items() if "category" not in key} for entry in images]
        file.write_text(json.dumps({**content, "images": images if federated else plain}))
        return BoxesToSegment(file)

    return write


def detections_of(asked: BoxesToSegment) -> list[dict]:
    """Masks beside the labelled ones, some of them of another category, with scores that do not tell."""
    rng = np.random.default_rng(4)
    found = []
    for entry in asked.labels.anns.values():
        for _ in range(int(rng.integers(0, 3))):
            other = rng.random() < 0.3
            category = int(rng.integers(1, 4)) if other else entry["category_id"]
            mask = encode_mask(moved(rng, entry["bbox"]))
            score = float(rng.random())
            found.append({"image_id": entry["image_id"], "category_id": category, "segmentation": mask, "score": score})
    return found


def test_the_numbers_are_pycocotools_own_on_the_same_detections(many, capsys):
    asked = many(federated=False)
    detections = detections_of(asked)
    found = summarise(asked.labels, detections, list(range(1, 31)))
    evaluation = COCOeval(asked.labels, asked.labels.loadRes([dict(one) for one in detections]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    ours = [getattr(found, name) for name in names] + [found.recall]
    np.testing.assert_allclose(ours, evaluation.stats[[0, 1, 2, 3, 4, 5, 8]], atol=1e-6, rtol=0)
    assert 0.05 < found.ap < 0.9
    assert found.style == "coco"
    capsys.readouterr()


def test_a_picture_of_which_nothing_was_found_counts_against(many):
    asked = many(federated=False)
    exact = [
        {"image_id": e["image_id"], "category_id": e["category_id"], "segmentation": e["segmentation"], "score": 0.5}
        for e in asked.labels.anns.values()
        if e["image_id"] > 15
    ]
    assert summarise(asked.labels, exact, list(range(16, 31))).ap == pytest.approx(1)
    assert summarise(asked.labels, exact, list(range(1, 31))).ap < 0.8


def test_a_detector_that_found_nothing_in_a_picture_missed_what_is_labelled(instances, tmp_path):
    box = BOXES[2][0]
    file = tmp_path / "coco_instances_results.json"
    file.write_text(json.dumps([{"image_id": 2, "category_id": 1 + box[0] % 2, "bbox": list(box), "score": 0.9}]))
    runtime = DrawingRuntime()
    found = evaluate_average_precision(runtime, BoxesToSegment(instances, file), multimask=False)
    assert (found.images, found.masks) == (2, 1)
    # one of the three labels: of the only category here, which has them all
    assert found.ap50 == pytest.approx(np.mean([recall <= 1 / 3 for recall in np.linspace(0, 1, 101)]))
    # nothing to ask, nothing to read
    assert runtime.encoded == 1


def test_what_lvis_did_not_look_for_counts_neither_way(many):
    """As LVIS defines it: the same as COCO's AP with the detections taken away that must not count."""
    asked = many(federated=True)
    detections = detections_of(asked)
    found = summarise(asked.labels, detections, list(range(1, 31)))
    assert found.style == "lvis"
    present = {(e["image_id"], e["category_id"]) for e in asked.labels.anns.values()}
    looked_for = [
        one for one in detections if (one["image_id"], one["category_id"]) in present or one["category_id"] == 3
    ]
    assert len(looked_for) < len(detections)
    assert summarise(asked.labels, looked_for, list(range(1, 31))) == replace(found, masks=len(looked_for))
    # one more false alarm costs, but for pictures whose things of its category were not labelled to the end
    corner = encode_mask(ellipse((58, 58, 5, 5)))
    alarms = {
        number: {"image_id": number, "category_id": 2, "segmentation": corner, "score": 1.0}
        for number in range(1, 31)
        if (number, 2) in present
    }
    open_ended, closed = (next(n for n in alarms if (n % 3 == 0) == wanted) for wanted in (True, False))
    images = list(range(1, 31))
    assert summarise(asked.labels, [*detections, alarms[open_ended]], images).ap == pytest.approx(found.ap)
    assert summarise(asked.labels, [*detections, alarms[closed]], images).ap < found.ap


def test_no_detection_is_no_ap(many):
    with pytest.raises(DataError, match="no box was segmented"):
        summarise(many(federated=False).labels, [], [1])
