import numpy as np
import pytest

from sam_edge.data.distance import squared_distance
from sam_edge.data.sample import Annotation, most_interior_point
from sam_edge.errors import DataError


def test_an_annotation_gives_back_the_mask_it_was_made_from(disc):
    annotation = Annotation.from_mask(disc)
    assert np.array_equal(annotation.mask(), disc)
    assert annotation.mask().dtype == bool
    assert annotation.area == disc.sum()


def test_the_box_is_tight(disc):
    rows, columns = np.nonzero(disc)
    left, top, width, height = Annotation.from_mask(disc).bbox_xywh
    assert (left, top) == (columns.min(), rows.min())
    assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())


def test_the_point_of_a_disc_is_its_centre(disc):
    assert Annotation.from_mask(disc).point_xy == (25.0, 18.0)


def test_the_border_of_the_picture_counts_as_outside():
    assert most_interior_point(np.ones((21, 31), bool))[1] == 10


@pytest.mark.parametrize("seed", range(5))
def test_the_point_lies_inside_any_mask(seed):
    mask = np.random.default_rng(seed).random((30, 20)) < 0.1
    x, y = Annotation.from_mask(mask).point_xy
    assert mask[int(y), int(x)]


@pytest.mark.parametrize("seed", range(5))
def test_the_point_is_the_first_of_the_farthest_from_the_outside(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 60), bool)
    for _ in range(8):
        y, x = rng.integers(5, 30), rng.integers(5, 50)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
    x, y = most_interior_point(mask)
    distance = squared_distance(mask).ravel()
    assert y * 60 + x == np.flatnonzero(distance == distance.max())[0]


def test_an_empty_mask_is_refused():
    with pytest.raises(DataError, match="empty"):
        Annotation.from_mask(np.zeros((5, 5), bool))
