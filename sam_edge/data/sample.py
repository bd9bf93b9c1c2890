"""What labelled data looks like to the rest of sam-edge: an image and its instance masks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco_mask

from sam_edge.data.dataset import Dataset
from sam_edge.data.distance import squared_distance
from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.errors import DataError


@dataclass(frozen=True)
class Annotation:
    """One instance: its mask, kept compressed, and the two prompts that ask for it."""

    rle: dict[str, Any]
    """COCO compressed RLE: {"size": [h, w], "counts": str or bytes}."""
    bbox_xywh: tuple[float, float, float, float]
    """Box in pixels: left, top, width, height."""
    point_xy: tuple[float, float]
    """A point of the object, in pixels: column, row."""

    @classmethod
    def from_mask(cls, mask: Bool[np.ndarray, "h w"]) -> "Annotation":
        """The annotation of a mask: tight box, most interior point. Raises DataError if it is empty."""
        return cls.from_rle(encode_mask(mask), mask)

    @classmethod
    def from_rle(
        cls,
        rle: dict[str, Any],
        mask: Bool[np.ndarray, "h w"] | None = None,
        bbox_xywh: tuple[float, float, float, float] | None = None,
    ) -> "Annotation":
        """Like `from_mask`, for a mask that is already encoded; `mask` and `bbox_xywh` where known."""
        pixels = decode_mask(rle) if mask is None else mask
        left, top, width, height = (int(side) for side in coco_mask.toBbox(rle))
        if width == 0 or height == 0:
            raise DataError("an annotation's mask is empty: leave such annotations out.")
        column, row = most_interior_point(pixels[top : top + height, left : left + width])
        box = bbox_xywh or (float(left), float(top), float(width), float(height))
        return cls(rle=rle, bbox_xywh=box, point_xy=(float(left + column), float(top + row)))

    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The mask, decoded anew at each call."""
        return decode_mask(self.rle)

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(coco_mask.area(self.rle))


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with the instances known in it."""

    name: str
    """File name, by which the data is split into train and val."""
    image: UInt8[np.ndarray, "h w 3"]
    """RGB."""
    annotations: tuple[Annotation, ...]
    unreadable: tuple[str, ...] = ()
    """What is wrong with each annotation that was left out."""


def read_annotations(
    entries: Iterable[Any], read: Callable[[Any], Annotation], where: str, *, strict: bool
) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """The annotations of a picture, and what is wrong with each that is left out: one bad one is no bad picture.

    Raises:
        DataError: one that cannot be read, with `strict`; or none that can.
    """
    found, wrong = [], []
    for index, entry in enumerate(entries):
        number = entry.get("id", index) if isinstance(entry, dict) else index
        try:
            found.append(read(entry))
            continue
        except DataError as error:
            reason = str(error)
        except KeyError as error:
            reason = f"lacks the key {error}."
        except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
            reason = f"is none ({error})."
        wrong.append(f"{where}: annotation {number}: {reason}")
        if strict:
            raise DataError(wrong[-1])
    if wrong and not found:
        raise DataError(wrong[0])
    return tuple(found), tuple(wrong)


class LabelledDataset(Dataset[LabelledImage]):
    """A dataset of `LabelledImage`s; see `Dataset` for what happens to broken files."""

    def draw(self, rng: np.random.Generator, shared: np.random.Generator) -> Any:
        """The index of a random item; `shared` is in the same state for examples that should lie close together."""
        return int(rng.integers(len(self)))

    def sample(self, count: int, rng: np.random.Generator) -> Dataset[LabelledImage]:
        """`count` random items, or all where there are fewer, in the order of the dataset."""
        chosen = rng.choice(len(self), min(count, len(self)), replace=False)
        return self.subset(sorted(int(index) for index in chosen))


def most_interior_point(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Column and row of the pixel farthest from the outside of a non-empty mask, in pixels; the first of several.

    The picture's border counts as outside: a point on the very edge is a poor prompt.
    """
    point, _ = most_interior(mask)
    return point


def most_interior(mask: Bool[np.ndarray, "h w"]) -> tuple[tuple[int, int], int]:
    """The same point, and its squared distance from the outside in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    # all around its box is outside, as is a picture's border
    distance = squared_distance(mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1])
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return (left + int(column), top + int(row)), int(distance[row, column])
