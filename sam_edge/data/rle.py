"""COCO run-length encoding: the one form in which masks are stored and passed on."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from pycocotools import mask as coco_mask

from sam_edge.errors import DataError


def encode_mask(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Compressed RLE `{"size": [h, w], "counts": str}`; the counts are text, so that it can go into JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of a compressed RLE made by `encode_mask` or checked by `to_rle`."""
    return coco_mask.decode(rle).astype(bool)


def coverage(
    rle: dict[str, Any], columns: Float[np.ndarray, " c"], rows: Float[np.ndarray, " r"]
) -> UInt8[np.ndarray, "r-1 c-1"]:
    """How much of each cell of a grid a mask covers, 0 to 255, without decoding the mask.

    `columns` and `rows` are the grid's lines in the mask's pixels, in ascending order, anywhere; what lies outside the
    picture is not covered. The work grows with the part of the mask's box that the grid shows, not with the picture.
    """
    height = int(rle["size"][0])
    left, top, box_width, box_height = coco_mask.toBbox(rle)
    # only cells, and only columns of pixels, that the mask's box touches
    first_c, last_c = _touched(columns, left, left + box_width)
    first_r, last_r = _touched(rows, top, top + box_height)
    covered = np.zeros((len(rows) - 1, len(columns) - 1), np.uint8)
    if box_width == 0 or first_c >= last_c or first_r >= last_r:
        return covered
    x_lines = columns[first_c : last_c + 1]
    y_lines = rows[first_r : last_r + 1]
    x0, x1 = max(int(x_lines[0]), int(left)), min(int(np.ceil(x_lines[-1])), int(left + box_width))
    # the pixels set before a place of the picture's scan down its columns: a polyline through the runs' ends
    runs = _runs(rle["counts"])
    ends = np.concatenate([[0], np.cumsum(runs)])
    runs[::2] = 0
    filled = np.concatenate([[0], np.cumsum(runs)])
    places = np.arange(x0, x1)[:, None] * height + np.clip(y_lines, 0, height)
    in_column = np.diff(np.interp(places, ends, filled), axis=1)
    before = np.concatenate([np.zeros((1, in_column.shape[1])), np.cumsum(in_column, axis=0)])
    x = np.clip(x_lines, x0, x1) - x0
    whole = np.minimum(x.astype(np.int64), x1 - x0 - 1)
    inside = np.diff(before[whole] + (x - whole)[:, None] * in_column[whole], axis=0).T
    areas = np.diff(y_lines)[:, None] * np.diff(x_lines)
    covered[first_r:last_r, first_c:last_c] = np.rint(255 * inside / areas)
    return covered


def scaled(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The RLE of a mask that was drawn on another size of the same picture, on `height` x `width`.

    Raises:
        DataError: a size of other proportions: not the same picture, or turned by its EXIF tag since.
    """
    drawn_height, drawn_width = (int(side) for side in rle["size"])
    if (drawn_height, drawn_width) == (height, width):
        return rle
    # a scaled export rounds one side
    if abs(drawn_height * width / drawn_width - height) > 1 and abs(drawn_width * height / drawn_height - width) > 1:
        raise DataError(
            f"the mask is of a picture of {drawn_width} x {drawn_height} (width x height), the file has {width} x "
            f"{height}: turned or cropped since; give the pictures that were annotated."
        )
    columns, rows = np.linspace(0, drawn_width, width + 1), np.linspace(0, drawn_height, height + 1)
    return encode_mask(coverage(rle, columns, rows) > 127)


def _touched(lines: Float[np.ndarray, " n"], low: float, high: float) -> tuple[int, int]:
    """First and last (exclusive) of the cells between `lines` that overlap low..high."""
    first = int(np.searchsorted(lines, low, "right")) - 1
    last = int(np.searchsorted(lines, high, "left"))
    return max(first, 0), min(last, len(lines) - 1)


def to_rle(segmentation: object, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of any COCO segmentation of a `height` x `width` image.

    `segmentation` is a list of polygons [[x, y, x, y, ...], ...], an uncompressed RLE (counts: list of ints)
    or a compressed one (counts: str or bytes). Raises DataError for anything else, or for another size.

    All of it is checked here, as pycocotools checks nothing: cut-off counts decode to leftover memory, and
    odd ones end the process.
    """
    try:
        if isinstance(segmentation, list):
            return _from_polygons(segmentation, height, width)
        if isinstance(segmentation, dict):
            return _from_runs(segmentation, height, width)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"a segmentation cannot be read ({error!r}): expected COCO polygons or RLE.") from error
    raise DataError(f"a segmentation is a {type(segmentation).__name__}: expected COCO polygons or RLE.")


def _from_polygons(segmentation: list[Any], height: int, width: int) -> dict[str, Any]:
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    # With fewer than three corners pycocotools would read the numbers as a box.
    polygons = [polygon for polygon in polygons if polygon.size >= 6]
    if not polygons:
        raise DataError(f"none of a segmentation's {len(segmentation)} polygons has three corners.")
    for polygon in polygons:
        # A little outside the picture is common in hand-made polygons; far outside is a mistake.
        if polygon.ndim != 1 or polygon.size % 2 or not (np.abs(polygon) < 10 * (height + width)).all():
            raise DataError("a polygon is not a flat list x, y, x, y, ... of pixels near the picture.")
    return coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width))


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size = [int(side) for side in segmentation["size"]]
    if size != [height, width]:
        shape = " x ".join(str(side) for side in size)
        raise DataError(f"a mask is {shape} (height x width), but its image {height} x {width}.")
    counts = segmentation["counts"]
    compressed = isinstance(counts, str | bytes)
    runs = _runs(counts) if compressed else np.asarray(counts, dtype=np.int64)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        raise DataError(f"a mask's runs do not add up to {height} x {width} pixels; it was cut off or edited.")
    if compressed:
        return {"size": size, "counts": counts}
    return coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, height, width)


def _runs(counts: str | bytes) -> Int64[np.ndarray, " runs"]:
    """The run lengths in compressed counts, as rleFrString of the COCO API reads them."""
    # Each character holds five bits, lowest first, above 48; bit 6 says that the number goes on.
    raw = counts.encode("ascii") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if digits.size == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise DataError("a mask's compressed counts are empty, cut off or no COCO RLE.")
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise DataError("a mask's compressed counts hold a run longer than any picture.")
    place = np.arange(digits.size) - np.repeat(first, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), first)
    runs -= ((digits[last] & 16) > 0) * (np.int64(1) << (5 * lengths))
    # From the fourth on, a number is the change against the run before the last.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
