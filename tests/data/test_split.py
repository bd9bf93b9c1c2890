import os

import pytest

from sam_edge.data.split import is_val, select
from sam_edge.errors import DataError


def test_known_names_keep_their_side():
    # Hard-coded: a change here would move every user's photos between train and val.
    assert is_val("sa_104.jpg")
    assert not is_val("sa_100.jpg")


def test_only_the_base_name_counts():
    assert is_val("some/folder/sa_104.jpg") == is_val("sa_104.jpg")


def test_train_and_val_part_all_names_about_four_to_one():
    names = [f"photo_{number}.jpg" for number in range(1000)]
    train, val = select(names, "train"), select(names, "val")
    assert sorted(train + val) == sorted(select(names, "all"))
    assert 150 < len(val) < 250


def test_an_empty_split_is_refused_with_the_remedy():
    with pytest.raises(DataError, match="split all"):
        select(["sa_100.jpg"], "val")


def test_an_unknown_split_is_refused():
    # A TypeError where the run checks type hints, which see it first.
    with pytest.raises((DataError, TypeError), match="test"):
        select(["a.jpg"], "test")


def test_a_name_that_is_not_utf_8_belongs_somewhere():
    names = [os.fsdecode(bytes([0xD5, byte]) + b".jpg") for byte in range(128, 160)]
    assert 0 < sum(map(is_val, names)) < len(names)
