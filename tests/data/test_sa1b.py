import json

import numpy as np
import pytest

from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.split import is_val
from sam_edge.errors import DataError


def edit(root, **changes):
    """Changes the first annotation of sa_3; a value of None drops the key."""
    path = root / "sa_3.json"
    content = json.loads(path.read_text())
    entry = content["annotations"][0] | changes
    content["annotations"][0] = {key: value for key, value in entry.items() if value is not None}
    path.write_text(json.dumps(content))


def test_what_was_written_is_read_back(sa1b_root, picture, disc):
    folder = Sa1bFolder(sa1b_root)
    sample = folder[0]
    assert len(folder) == 10
    assert sample.name == "sa_0.png"
    assert np.array_equal(sample.image, picture)
    (annotation,) = sample.annotations
    assert np.array_equal(annotation.mask(), disc)
    assert annotation.bbox_xywh == (14.0, 7.0, 23.0, 23.0)
    assert annotation.point_xy == (25.0, 18.0)


def test_train_and_val_follow_the_file_names(sa1b_root):
    val = Sa1bFolder(sa1b_root, "val").names
    assert val
    assert all(is_val(name) for name in val)
    assert sorted(val + Sa1bFolder(sa1b_root, "train").names) == Sa1bFolder(sa1b_root).names


@pytest.mark.parametrize("key", ["segmentation", "bbox", "point_coords"])
def test_a_missing_key_is_named_with_its_file(sa1b_root, key):
    edit(sa1b_root, **{key: None})
    with pytest.raises(DataError, match=rf"sa_3\.json.*{key}"):
        Sa1bFolder(sa1b_root)[3]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"annotations": 3}', '{"annotations": [3]}'])
def test_broken_json_is_skipped_with_its_name(sa1b_root, content):
    (sa1b_root / "sa_3.json").write_text(content)
    with pytest.warns(UserWarning, match=r"skipped 1 of 10 .*sa_3\.json"):
        assert len(list(Sa1bFolder(sa1b_root))) == 9


def test_a_mask_of_another_size_is_refused(sa1b_root):
    edit(sa1b_root, segmentation={"size": [60, 40], "counts": [2400]})
    with pytest.raises(DataError, match="60 x 40"):
        Sa1bFolder(sa1b_root)[3]


def test_a_folder_without_pairs_is_refused(sa1b_root):
    for path in sa1b_root.glob("*.json"):
        path.unlink()
    with pytest.raises(DataError, match=r"\.json"):
        Sa1bFolder(sa1b_root)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bbox", [1, float("nan"), 4, 4]), ("point_coords", [[float("inf"), 2]]), ("point_coords", [[2, 1e300]])],
)
def test_what_lies_nowhere_near_the_picture_is_no_prompt(sa1b_root, key, value):
    path = sa1b_root / "sa_3.json"
    content = json.loads(path.read_text())
    content["annotations"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"sa_3\.json: annotation \d+: its box or its point is not near the picture"):
        list(Sa1bFolder(sa1b_root, strict=True))


def test_one_bad_annotation_is_left_out_and_counted(sa1b_root):
    path = sa1b_root / "sa_3.json"
    content = json.loads(path.read_text())
    content["annotations"] += [{"id": 8}, "none"]
    path.write_text(json.dumps(content))
    folder = Sa1bFolder(sa1b_root)
    with pytest.warns(UserWarning, match=r"left out 2 unreadable annotations, the first: .*sa_3.json: annotation 8: "):
        assert sum(len(sample.annotations) for sample in folder) == 10
    assert (folder.skipped, folder.unreadable) == (0, 2)
    with pytest.raises(DataError, match="annotation 8: lacks the key 'bbox'"):
        list(Sa1bFolder(sa1b_root, strict=True))
