import json

import numpy as np
import pytest
from PIL import Image

from sam_edge.data.coco import CocoInstances
from sam_edge.data.open import open_images, open_labelled
from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.errors import DataError
from sam_edge.scenes.synthetic import SyntheticScenes


def test_a_folder_of_pairs_opens_as_sa1b(sa1b_root):
    dataset = open_labelled(str(sa1b_root), split="train", strict=True)
    assert isinstance(dataset, Sa1bFolder)
    assert dataset.strict
    assert dataset.names == Sa1bFolder(sa1b_root, "train").names


def test_a_json_file_or_its_folder_opens_as_coco(tmp_path, picture):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    Image.fromarray(picture).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": 1, "image_id": 1, "segmentation": [[1, 1, 20, 1, 20, 20]]}],
    }
    file = tmp_path / "annotations" / "instances_a.json"
    file.write_text(json.dumps(content))
    for spec in (file, tmp_path, tmp_path / "annotations"):
        dataset = open_labelled(spec)
        assert isinstance(dataset, CocoInstances)
        assert len(list(dataset)) == 1
    (tmp_path / "annotations" / "instances_b.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="name the one"):
        open_labelled(tmp_path)


@pytest.mark.parametrize(
    ("spec", "count", "seed"), [("synthetic", 1000, 0), ("synthetic:7", 7, 0), ("synthetic:7:5", 7, 5)]
)
def test_synthetic_takes_a_count_and_a_seed(spec, count, seed):
    dataset = open_labelled(spec)
    assert isinstance(dataset, SyntheticScenes)
    assert (len(dataset), dataset.seed) == (count, seed)


@pytest.mark.parametrize(
    "spec", ["synthetic:x", "synthetic:", "synthetic:1:2:3", "synthetic:-1", "synthetic:0", f"synthetic:{10**11}"]
)
def test_malformed_synthetic_is_refused(spec):
    with pytest.raises(DataError, match="synthetic"):
        open_labelled(spec)


def test_anything_else_is_refused_with_what_is_allowed(tmp_path):
    with pytest.raises(DataError, match=r"SA-1B.*COCO.*synthetic"):
        open_labelled(tmp_path / "gone")


def test_images_open_without_their_labels(sa1b_root, picture):
    images = open_images(sa1b_root, limit=2)
    assert [name for name, _ in images] == ["sa_0.png", "sa_1.png"]
    assert np.array_equal(images[0][1], picture)


def test_synthetic_images_are_the_labelled_ones_without_labels():
    images, scenes = open_images("synthetic:5:2", limit=3), open_labelled("synthetic:5:2")
    assert images.names == scenes.names[:3]
    assert np.array_equal(images[-1][1], scenes[2].image)
    with pytest.raises(IndexError):
        images[3]


@pytest.mark.parametrize(
    ("folder", "images", "masks"),
    [("coco128", 126, 925), ("bbbc038", 160, 6345), ("bsds500", 120, 1381), ("ccp", 320, 4281)],
)
def test_real_folders_open_whole_with_points_inside_their_masks(shared_data, folder, images, masks):
    dataset = open_labelled(shared_data / folder, strict=True)
    samples = list(dataset)
    assert len(samples) == images
    assert sum(len(sample.annotations) for sample in samples) == masks
    for annotation in samples[0].annotations:
        x, y = annotation.point_xy
        assert annotation.mask()[int(y), int(x)]
        assert annotation.area > 0


def test_a_coco_file_s_pictures_may_lie_anywhere(tmp_path, picture):
    (tmp_path / "far" / "photos").mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    Image.fromarray(picture).save(tmp_path / "far" / "photos" / "a.png")
    labels = tmp_path / "labels" / "instances.json"
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[5, 5, 30, 5, 30, 30, 5, 30]]}
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]
    labels.write_text(json.dumps({"images": images, "annotations": [entry], "categories": []}))
    with pytest.raises(DataError, match="--images-root"):
        open_labelled(labels)
    for spec in (labels, labels.parent):
        (sample,) = open_labelled(spec, images_root=tmp_path / "far" / "photos")
        assert (sample.image == picture).all()
    with pytest.raises(DataError, match="no such folder"):
        open_labelled(labels, images_root=tmp_path / "gone")
    for other in ("synthetic:3", tmp_path / "far"):
        with pytest.raises(DataError, match="belongs to COCO instances json alone"):
            open_labelled(other, images_root=tmp_path / "far" / "photos")
