"""COCO's AP of masks from boxes, on a runtime whose answers are plain."""

import json

import numpy as np
import pytest
from PIL import Image

from sam_edge.data.rle import encode_mask
from sam_edge.errors import DataError
from sam_edge.evaluate.average_precision import BoxesToSegment, evaluate_average_precision, summarise
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


def test_exact_masks_have_all_of_it_and_others_none(instances):
    asked = BoxesToSegment(instances)
    exact = [
        {"image_id": e["image_id"], "category_id": e["category_id"], "segmentation": e["segmentation"], "score": 0.5}
        for e in asked.labels.anns.values()
    ]
    assert summarise(asked.labels, exact).ap == pytest.approx(1)
    assert summarise(asked.labels, [{**result, "category_id": 3 - result["category_id"]} for result in exact]).ap == 0


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
    found = evaluate_average_precision(DrawingRuntime(), BoxesToSegment(instances, file), results=results)
    assert found.masks == 4
    assert found.ap < right.ap
    scores = [r["score"] for line in results.read_text().splitlines()[1:] for r in json.loads(line)["results"]]
    assert sorted(scores) == [0.9, 0.9, 0.9, 0.99]


def test_results_go_on_where_a_kill_left_them(instances, tmp_path):
    results, runtime = tmp_path / "results.jsonl", DrawingRuntime()
    whole = evaluate_average_precision(runtime, BoxesToSegment(instances), results=results, key={"model": "a"})
    text = results.read_text()
    results.write_text(text[:-40])
    again = evaluate_average_precision(runtime, BoxesToSegment(instances), results=results, key={"model": "a"})
    assert again == whole
    assert results.read_text() == text
    assert runtime.encoded == 3
    with pytest.raises(DataError, match="holds results of"):
        evaluate_average_precision(runtime, BoxesToSegment(instances), results=results, key={"model": "b"})


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
