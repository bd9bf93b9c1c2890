"""sam_edge.segment.matching: best matches, in any output mode."""

import numpy as np
import pytest

from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.segment.matching import agreement, as_rle, best_ious
from sam_edge.segment.records import Found, box_of, run_lengths


def square(x0: int, side: int) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[2 : 2 + side, x0 : x0 + side] = True
    return mask


def record(mask: np.ndarray, mode: str = "coco_rle") -> dict:
    return Found(mask.shape, run_lengths(mask), box_of(mask), 0.5, 0.9, (0.0, 0.0), (0, 0, 30, 20)).record(mode)


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_a_mask_is_matched_with_the_nearest_record(mode):
    records = [record(square(1, 8), mode), record(square(12, 4), mode)]
    wanted = [encode_mask(mask) for mask in (square(1, 8), square(12, 8), square(25, 3))]
    assert best_ious(wanted, records) == pytest.approx([1.0, 16 / 64, 0.0])
    assert (decode_mask(as_rle(records[0])) == square(1, 8)).all()


def test_nothing_found_matches_nothing():
    assert best_ious([encode_mask(square(1, 8))], []).tolist() == [0.0]
    assert best_ious([], [record(square(1, 8))]).tolist() == []


def test_agreement_is_mutual():
    one, two = [record(square(1, 8))], [record(square(1, 8)), record(square(20, 8))]
    assert agreement(one, two) == agreement(two, one) == pytest.approx(2 / 3)
    assert agreement(two, two) == 1.0
    assert agreement([], []) == 1.0
    assert agreement(one, []) == 0.0


def test_empty_masks_count_as_nothing():
    empty = record(np.zeros((20, 30), bool))
    assert agreement([empty], []) == 1.0
    assert agreement([empty, record(square(1, 8))], [record(square(1, 8))]) == 1.0
