import json

import numpy as np
import pytest

from sam_edge.data.rle import coverage, decode_mask, encode_mask, to_rle
from sam_edge.errors import DataError


def runs(mask):
    """Uncompressed COCO counts, written out by hand: run lengths down the columns, background first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.mark.parametrize("seed", range(4))
def test_masks_survive_encoding_and_json(seed):
    mask = np.random.default_rng(seed).random((17, 23)) < seed / 3
    assert np.array_equal(decode_mask(json.loads(json.dumps(encode_mask(mask)))), mask)


@pytest.mark.parametrize("kind", ["compressed str", "compressed bytes", "uncompressed"])
def test_both_kinds_of_rle_give_the_same_mask(kind, disc):
    rle = encode_mask(disc)
    if kind == "compressed bytes":
        rle["counts"] = rle["counts"].encode()
    if kind == "uncompressed":
        rle["counts"] = runs(disc)
    assert np.array_equal(decode_mask(to_rle(rle, *disc.shape)), disc)


@pytest.mark.parametrize(
    "segmentation",
    [
        "text",
        None,
        [],
        [[1, 2, 3, 4]],
        {"size": [40, 60]},
        {"size": [40, 60], "counts": [1, 2, 3]},
        {"size": [60, 40], "counts": [2400]},
        {"size": [40, 60], "counts": [2500, -100]},
        {"size": [40, 60], "counts": ""},
        {"size": [40, 60], "counts": "é"},
        {"size": [40, 60], "counts": b"\xff\xff"},
        {"size": [40, 60], "counts": "P" * 50},
        {"size": [40, 60], "counts": 5},
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, 1e12]],
        [["a", "b", "c", "d", "e", "f"]],
    ],
)
def test_anything_else_is_refused(segmentation):
    with pytest.raises(DataError):
        to_rle(segmentation, 40, 60)


@pytest.mark.parametrize("seed", range(20))
def test_edited_counts_are_refused_or_still_a_mask_of_that_size(seed):
    # pycocotools itself reads stray memory, or aborts, on such counts.
    rng = np.random.default_rng(seed)
    rle = encode_mask(rng.random((40, 60)) < 0.3)
    counts = bytearray(rle["counts"].encode())
    for _ in range(30):
        edited = bytearray(counts)
        edited[int(rng.integers(len(edited)))] = int(rng.integers(256))
        try:
            checked = to_rle({"size": [40, 60], "counts": bytes(edited)}, 40, 60)
        except DataError:
            continue
        assert decode_mask(checked).shape == (40, 60)


def test_cut_off_counts_are_refused(disc):
    counts = encode_mask(disc)["counts"]
    for length in range(len(counts)):
        with pytest.raises(DataError):
            to_rle({"size": [40, 60], "counts": counts[:length]}, 40, 60)


def exact_coverage(mask, columns, rows):
    """Coverage by the mask's integral, bilinear between its corners: exact for pixels that are squares."""
    height, width = mask.shape
    integral = np.zeros((height + 1, width + 1))
    integral[1:, 1:] = mask.cumsum(0).cumsum(1)

    def along(lines, size):
        lines = np.clip(lines, 0, size)
        first = np.minimum(lines.astype(int), size - 1)
        matrix = np.zeros((len(lines), size + 1))
        matrix[np.arange(len(lines)), first] = 1 - (lines - first)
        matrix[np.arange(len(lines)), first + 1] += lines - first
        return matrix

    corners = along(rows, height) @ integral @ along(columns, width).T
    return np.diff(np.diff(corners, axis=0), axis=1) / (np.diff(rows)[:, None] * np.diff(columns))


@pytest.mark.parametrize("seed", range(60))
def test_coverage_of_any_grid_is_the_area_of_the_decoded_mask(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 60, 2))
    cells = rng.random((height // 9 + 1, width // 9 + 1)) < rng.choice([0.0, 0.2, 0.5, 1.0])
    mask = cells.repeat(9, 0).repeat(9, 1)[:height, :width]
    columns = np.sort(rng.uniform(-10, width + 10, 9))
    rows = np.sort(rng.uniform(-10, height + 10, 7))
    if seed % 3 == 0:
        # lines on pixel borders, as whole views have them
        columns, rows = np.unique(columns.round()), np.unique(rows.round())
    covered = coverage(encode_mask(mask), columns, rows)
    assert covered.dtype == np.uint8
    # half a step of rounding
    assert np.abs(covered - 255 * exact_coverage(mask, columns, rows)).max() <= 0.5 + 1e-6


def test_coverage_of_a_grid_beside_the_picture_is_nothing():
    rle = encode_mask(np.ones((10, 12), bool))
    for shift in (-100.0, 100.0):
        lines = np.arange(5) + shift
        assert not coverage(rle, lines, np.arange(5.0)).any()
        assert not coverage(rle, np.arange(5.0), lines).any()
    assert (coverage(rle, np.arange(13.0), np.arange(11.0)) == 255).all()
