"""COCO instance annotations (and LVIS, which shares the layout): one JSON file for a folder of images."""

from pathlib import Path
from typing import Any

from sam_edge.data.image import read_image
from sam_edge.data.rle import scaled, to_rle
from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage, read_annotations
from sam_edge.data.split import Split, select
from sam_edge.errors import DataError
from sam_edge.files import parse_json


class CocoInstances(LabelledDataset):
    """The annotated images of a COCO JSON file.

    Crowd regions, which are no instances, and images without an instance are left out. `images_root` is
    looked for near the JSON file when not given. Raises DataError at construction for a broken JSON file, an
    image folder that cannot be found or an empty split, and on access for a broken image or mask.
    """

    def __init__(
        self,
        annotation_json: str | Path,
        images_root: str | Path | None = None,
        split: Split = "all",
        strict: bool = False,
    ) -> None:
        # pycocotools.COCO is not used: it prints to stdout, where `--json` allows one object only.
        self.annotation_json = Path(annotation_json)
        self.strict = strict
        self._entries, self._sizes = _entries_by_image(self.annotation_json)
        self._names = select(sorted(self._entries), split)
        if images_root is None:
            self.images_root = _find_images(self.annotation_json, self._names[0])
        else:
            self.images_root = Path(images_root)
            if not self.images_root.is_dir():
                raise DataError(f"{images_root}: no such folder; give the folder of the COCO images.")

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> LabelledImage:
        name = self._names[index]
        image = read_image(self.images_root / name)
        height, width = image.shape[:2]
        drawn_on = self._sizes.get(name, (height, width))

        def read(entry: dict[str, Any]) -> Annotation:
            return Annotation.from_rle(scaled(to_rle(entry["segmentation"], *drawn_on), height, width))

        where = f"{self.annotation_json}: {name}"
        annotations, unreadable = read_annotations(self._entries[name], read, where, strict=self.strict)
        return LabelledImage(name, image, annotations, unreadable)


def _entries_by_image(
    annotation_json: Path,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, tuple[int, int]]]:
    """File name -> its instances as they stand in the JSON file, and -> the height and width they were drawn on."""
    try:
        content = parse_json(annotation_json.read_bytes())
        sizes = {
            file_name(image): (int(image["height"]), int(image["width"]))
            for image in content["images"]
            if image.get("height") and image.get("width")
        }
        names = {image["id"]: file_name(image) for image in content["images"]}
        entries: dict[str, list[dict[str, Any]]] = {}
        for entry in content["annotations"]:
            # a box without a mask, and what belongs to no picture, are no instances to pycocotools either
            if not entry.get("iscrowd") and entry.get("segmentation") and entry["image_id"] in names:
                entries.setdefault(names[entry["image_id"]], []).append(entry)
    except OSError as error:
        raise DataError(f"{annotation_json}: cannot be read ({error.strerror}); check the path.") from error
    except KeyError as error:
        raise DataError(f"{annotation_json}: lacks {error}; expected COCO instances.") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{annotation_json}: not COCO instances ({error}).") from error
    if not entries:
        raise DataError(f"{annotation_json}: has no instances (crowds do not count); give an instances file.")
    return entries, sizes


def file_name(image: dict[str, Any]) -> str:
    """The file of an entry of `images`."""
    # LVIS names its images by address only; the last part is the file name in the COCO folders.
    name = image["file_name"] if "file_name" in image else image["coco_url"].rsplit("/", 1)[1]
    # as Windows writes paths
    return name.replace("\\", "/")


def _find_images(annotation_json: Path, name: str) -> Path:
    """The first of the usual folders that holds the image `name`."""
    beside = annotation_json.parent
    part = annotation_json.stem.removeprefix("instances_")
    candidates = [beside, beside / "images", beside.parent / "images", beside.parent / part, beside / part]
    candidates += [beside.parent / "images" / part, beside.parent]
    for folder in candidates:
        if (folder / name).is_file():
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    raise DataError(
        f"{annotation_json}: image {name} not found in {looked}; give the folder of the images (--images-root)."
    )
