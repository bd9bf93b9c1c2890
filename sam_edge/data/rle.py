"""COCO run-length encoding: the one form in which masks are stored and passed on."""

from typing import Any

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from sam_edge.errors import DataError


def encode_mask(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """Compressed RLE `{"size": [h, w], "counts": str}`; the counts are text, so that it can go into JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of a compressed RLE. Raises DataError if the runs do not fit the size."""
    try:
        return coco_mask.decode(rle).astype(bool)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"a mask's RLE cannot be decoded ({error}): write it again with pycocotools."
        ) from error


def to_rle(segmentation: object, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of any COCO segmentation of a `height` x `width` image.

    `segmentation` is a list of polygons [[x, y, x, y, ...], ...], an uncompressed RLE (counts: list of ints)
    or a compressed one (counts: str or bytes). Raises DataError for anything else, or for a size that differs.
    """
    try:
        if isinstance(segmentation, list):
            # With fewer than three corners pycocotools would read the numbers as a box.
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not polygons:
                raise DataError(f"a segmentation has {len(segmentation)} polygons, none with three corners.")
            return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        if isinstance(segmentation, dict):
            size = [int(side) for side in segmentation["size"]]
            if size != [height, width]:
                raise DataError(
                    f"a mask is {size[0]} x {size[1]} (height x width), its image {height} x {width}: "
                    "annotate the image as it is displayed."
                )
            counts = segmentation["counts"]
            if isinstance(counts, list):
                if sum(counts) != height * width or min(counts, default=0) < 0:
                    raise DataError(f"a mask's runs add up to {sum(counts)} pixels, not {height} x {width}.")
                return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
            return {"size": size, "counts": counts}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"a segmentation cannot be read ({error!r}): expected COCO polygons or RLE."
        ) from error
    raise DataError(f"a segmentation is a {type(segmentation).__name__}: expected COCO polygons or RLE.")
