"""sam_edge.compress.validation: what is held out, and what of it can be read."""

import numpy as np
import pytest

from sam_edge.compress.validation import Closeness
from sam_edge.errors import DataError


class Some:
    """Noise, of which some is broken."""

    def __init__(self, broken: set[int]) -> None:
        self.broken = broken

    def __getitem__(self, index: int) -> tuple[str, np.ndarray]:
        if index in self.broken:
            raise DataError(f"{index}.jpg is truncated")
        return f"{index}.jpg", np.random.default_rng(index).integers(0, 256, (40, 50, 3), np.uint8)


def test_broken_pictures_are_passed_over(tiny_sam):
    close = Closeness(tiny_sam, Some({0}), [0, 1])
    assert close.of(tiny_sam) == {"embedding_error": 0.0, "mask_agreement": 1.0}


def test_where_none_can_be_read_the_first_says_why(tiny_sam):
    with pytest.raises(DataError, match=r"none of the 2 held-out pictures .*; the first: 0\.jpg is truncated"):
        Closeness(tiny_sam, Some({0, 1}), [0, 1])
