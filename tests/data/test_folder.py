import warnings

import numpy as np
import pytest
from PIL import Image

from sam_edge.data.folder import ImageFolder
from sam_edge.errors import DataError


@pytest.fixture
def root(tmp_path, picture):
    """Four images in two folders, the second of them truncated, and files that are none."""
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.png", "c.jpg", "deep/d.png"):
        Image.fromarray(picture).save(tmp_path / name)
    broken = tmp_path / "b.PNG"
    broken.write_bytes(broken.read_bytes()[:500])
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png").write_bytes(b"a copy")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_names_are_sorted_and_reach_into_subfolders(root):
    assert ImageFolder(root).names == ["a.png", "b.PNG", "c.jpg", "deep/d.png"]


def test_a_broken_file_is_skipped_counted_and_named_in_one_warning(root):
    folder = ImageFolder(root)
    with pytest.warns(UserWarning, match=r"skipped 1 of 4 .*b\.PNG") as caught:
        names = [name for name, _ in folder]
    assert len(caught) == 1
    assert folder.skipped == 1
    assert names == ["a.png", "c.jpg", "deep/d.png"]


def test_skipped_counts_one_pass_and_not_all(root):
    folder = ImageFolder(root)
    for _ in range(2):
        with pytest.warns(UserWarning, match="skipped 1"):
            list(folder)
    assert folder.skipped == 1


def test_strict_raises_at_the_broken_file(root):
    with pytest.raises(DataError, match=r"b\.PNG"):
        list(ImageFolder(root, strict=True))


def test_an_index_is_always_strict(root):
    with pytest.raises(DataError, match=r"b\.PNG"):
        ImageFolder(root)[1]


def test_good_files_pass_in_silence(root, picture):
    (root / "b.PNG").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items = dict(ImageFolder(root))
    assert np.array_equal(items["deep/d.png"], picture)


def test_limit_keeps_the_first(root):
    assert ImageFolder(root, limit=1).names == ["a.png"]
    with pytest.raises(DataError, match="limit"):
        ImageFolder(root, limit=0)


def test_an_empty_or_missing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no images"):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        ImageFolder(tmp_path / "gone")
