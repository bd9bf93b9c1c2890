"""sam_edge.data.joined: the same pictures under longer names, in the same split."""

import numpy as np
import pytest

from sam_edge.data.joined import open_joined
from sam_edge.data.open import open_labelled
from sam_edge.data.split import is_val
from sam_edge.errors import DataError

# the parts here are synthetic, which a device has not
pytest.importorskip("sam_edge.scenes.synthetic")


def test_pictures_masks_and_split_are_the_parts_own():
    specs = ("synthetic:6:1", "synthetic:4:2")
    joined, alone = open_joined(specs), [open_labelled(spec) for spec in specs]
    assert len(joined) == 10
    assert [name.partition("/")[0] for name in joined.names] == ["synthetic-6-1"] * 6 + ["synthetic-4-2"] * 4
    assert [is_val(name) for name in joined.names] == [is_val(name) for part in alone for name in part.names]
    got, wanted = joined[7], alone[1][1]
    assert got.name == joined.names[7]
    assert np.array_equal(got.image, wanted.image)
    assert got.annotations == wanted.annotations


def test_two_data_sets_of_one_name_are_refused():
    with pytest.raises(DataError, match="called alike"):
        open_joined(["synthetic:4:1", "synthetic:4:1"])
