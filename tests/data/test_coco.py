import json

import cv2
import numpy as np
import pytest
from PIL import Image

from sam_edge.data.coco import CocoInstances
from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.errors import DataError

TRIANGLE = [5.0, 5.0, 50.0, 8.0, 20.0, 36.0]
SQUARE = [40.0, 25.0, 55.0, 25.0, 55.0, 38.0, 40.0, 38.0]


@pytest.fixture
def coco_root(tmp_path, picture, disc):
    """annotations/instances_tiny.json with four images in tiny/: polygons, RLE, a crowd, and nothing."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "tiny").mkdir()
    images = [{"id": number, "file_name": f"{number}.png", "height": 40, "width": 60} for number in range(4)]
    for image in images:
        Image.fromarray(picture).save(tmp_path / "tiny" / image["file_name"])
    crowd = {"size": [40, 60], "counts": [0, 2400]}
    annotations = [
        {"id": 1, "image_id": 0, "iscrowd": 0, "segmentation": [TRIANGLE, SQUARE]},
        {"id": 2, "image_id": 1, "iscrowd": 0, "segmentation": encode_mask(disc)},
        {"id": 3, "image_id": 1, "iscrowd": 1, "segmentation": crowd},
        {"id": 4, "image_id": 2, "iscrowd": 1, "segmentation": crowd},
    ]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "annotations" / "instances_tiny.json").write_text(json.dumps(content))
    return tmp_path


def test_polygons_cover_what_opencv_fills(coco_root):
    (annotation,) = CocoInstances(coco_root / "annotations" / "instances_tiny.json")[0].annotations
    # Pixel centres are at halves in COCO; eight times finer, OpenCV's rounding no longer matters.
    fine = np.zeros((320, 480), np.uint8)
    for polygon in (TRIANGLE, SQUARE):
        cv2.fillPoly(fine, [np.rint(np.reshape(polygon, (-1, 2)) * 8).astype(np.int32)], 1)
    reference = fine[4::8, 4::8].astype(bool)
    mask = annotation.mask()
    assert (mask & reference).sum() / (mask | reference).sum() > 0.94


def test_crowds_and_images_without_instances_are_left_out(coco_root, disc):
    dataset = CocoInstances(coco_root / "annotations" / "instances_tiny.json")
    assert dataset.names == ["0.png", "1.png"]
    (annotation,) = dataset[1].annotations
    assert np.array_equal(annotation.mask(), disc)


def test_images_are_found_beside_the_annotations_or_where_told(coco_root):
    annotation_json = coco_root / "annotations" / "instances_tiny.json"
    (coco_root / "tiny").rename(coco_root / "elsewhere")
    with pytest.raises(DataError, match="give the folder"):
        CocoInstances(annotation_json)
    assert len(list(CocoInstances(annotation_json, coco_root / "elsewhere"))) == 2
    (coco_root / "elsewhere").rename(coco_root / "images")
    assert len(list(CocoInstances(annotation_json))) == 2


def test_nothing_is_printed(coco_root, capsys):
    list(CocoInstances(coco_root / "annotations" / "instances_tiny.json"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": [], "annotations": []}'])
def test_a_json_file_that_is_not_coco_is_refused_by_name(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(DataError, match=r"odd\.json"):
        CocoInstances(tmp_path / "odd.json")


def test_masks_drawn_on_another_size_are_scaled_to_the_photo(tmp_path, picture):
    polygon = [[20, 10, 80, 10, 80, 60, 20, 60]]
    image = {"id": 1, "file_name": "a.png", "height": 80, "width": 120}
    runs = encode_mask(np.pad(np.ones((50, 60), bool), ((10, 20), (20, 40))))
    for segmentation in (polygon, runs):
        entry = {"id": 1, "image_id": 1, "segmentation": segmentation}
        (tmp_path / "instances.json").write_text(json.dumps({"images": [image], "annotations": [entry]}))
        Image.fromarray(picture).save(tmp_path / "a.png")
        (annotation,) = CocoInstances(tmp_path / "instances.json")[0].annotations
        mask = decode_mask(annotation.rle)
        assert mask.shape == (40, 60)
        assert mask[5:30, 10:40].all()
        assert mask.sum() == 25 * 30
        assert annotation.bbox_xywh == (10, 5, 30, 25)


def test_masks_of_a_photo_that_was_turned_since_are_refused(tmp_path, picture):
    image = {"id": 1, "file_name": "a.png", "height": 60, "width": 40}
    entry = {"id": 7, "image_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]}
    (tmp_path / "instances.json").write_text(json.dumps({"images": [image], "annotations": [entry]}))
    Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"a.png: annotation 7: the mask is of a picture of 40 x 60 .* turned or cropped"
    ):
        CocoInstances(tmp_path / "instances.json")[0]


def changed(coco_root, **changes):
    """The annotations file with some of its parts replaced."""
    file = coco_root / "annotations" / "instances_tiny.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


BAD = {
    "two points": [[1, 1, 5, 5]],
    "far outside": [[1e6, 1, 1e6, 9, 1e6 + 9, 9]],
    "no number": [[float("nan"), 1, 9, 1, 9, 9]],
    "collinear": [[1, 1, 5, 1, 9, 1]],
    "of another size": {"size": [4, 4], "counts": [0, 16]},
}


@pytest.mark.parametrize("segmentation", BAD.values(), ids=BAD)
def test_one_bad_annotation_is_left_out_and_counted(coco_root, segmentation):
    good = {"id": 1, "image_id": 0, "segmentation": [TRIANGLE]}
    bad = {"id": 2, "image_id": 0, "segmentation": segmentation}
    file = changed(coco_root, annotations=[good, bad])
    dataset = CocoInstances(file)
    with pytest.warns(UserWarning, match="left out 1 unreadable annotations, the first: .*0.png: annotation 2: "):
        (sample,) = dataset
    assert len(sample.annotations) == 1
    assert (dataset.skipped, dataset.unreadable) == (0, 1)
    with pytest.raises(DataError, match="annotation 2"):
        list(CocoInstances(file, strict=True))


def test_what_belongs_to_no_picture_or_has_no_mask_is_no_instance(coco_root):
    """As to pycocotools."""
    good = {"id": 1, "image_id": 0, "segmentation": [TRIANGLE]}
    orphan, box = {**good, "id": 2, "image_id": 99}, {"id": 3, "image_id": 1, "bbox": [1, 1, 5, 5]}
    assert CocoInstances(changed(coco_root, annotations=[good, orphan, box])).names == ["0.png"]


def test_a_byte_order_mark_text_ids_and_windows_paths_are_read(coco_root):
    entry = {"id": "a", "image_id": "one", "segmentation": [TRIANGLE]}
    image = {"id": "one", "file_name": "tiny\\0.png", "height": 40, "width": 60}
    file = changed(coco_root, images=[image], annotations=[entry])
    file.write_text("\ufeff" + file.read_text(), encoding="utf-8")
    (sample,) = CocoInstances(file, coco_root)
    assert sample.name == "tiny/0.png"
