"""The layout of SA-1B (Segment Anything, 2023): NAME.jpg beside NAME.json."""

from pathlib import Path
from typing import Any

from sam_edge.data.folder import list_images
from sam_edge.data.image import read_image
from sam_edge.data.rle import to_rle
from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage, read_annotations
from sam_edge.data.split import Split, select
from sam_edge.errors import DataError
from sam_edge.files import parse_json


class Sa1bFolder(LabelledDataset):
    """The images of a folder (and its subfolders) that have a JSON file of the same stem beside them.

    Images without one are not part of the dataset. Raises DataError at construction if no pair is found or
    the split is empty, and on access for a broken image or JSON.
    """

    def __init__(self, root: str | Path, split: Split = "all", strict: bool = False) -> None:
        self.root = Path(root)
        self.strict = strict
        pairs = [name for name in list_images(self.root) if (self.root / name).with_suffix(".json").is_file()]
        if not pairs:
            raise DataError(f"{self.root}: no image has a .json file of the same name beside it (SA-1B layout).")
        self._names = select(pairs, split)

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> LabelledImage:
        name = self._names[index]
        image = read_image(self.root / name)
        height, width = image.shape[:2]
        path = (self.root / name).with_suffix(".json")
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); replace or remove it.") from error
        return LabelledImage(name, image, *parse_sa1b(text, str(path), height, width, strict=self.strict))


def parse_sa1b(
    text: bytes, where: str, height: int, width: int, *, strict: bool
) -> tuple[tuple[Annotation, ...], tuple[str, ...]]:
    """The annotations in a SA-1B JSON file for an image of `height` x `width` pixels, and what is wrong with those that
    are left out; `where` is what errors call the file.

    Raises:
        DataError: no JSON, or a key that it lacks; see `read_annotations`.
    """
    try:
        entries = parse_json(text)["annotations"]
        return read_annotations(entries, lambda entry: _annotation(entry, height, width), where, strict=strict)
    except KeyError as error:
        raise DataError(f"{where}: lacks the key {error}; expected SA-1B annotations.") from error
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise DataError(f"{where}: not SA-1B annotations ({error}); replace or remove it.") from error


def _annotation(entry: dict[str, Any], height: int, width: int) -> Annotation:
    left, top, box_width, box_height = (float(value) for value in entry["bbox"])
    x, y = (float(value) for value in entry["point_coords"][0])
    # as far out as polygons may lie; what is not finite is nowhere
    if not all(abs(value) < 10 * (height + width) for value in (left, top, box_width, box_height, x, y)):
        raise DataError("its box or its point is not near the picture.")
    return Annotation(
        rle=to_rle(entry["segmentation"], height, width),
        bbox_xywh=(left, top, box_width, box_height),
        point_xy=(x, y),
    )
