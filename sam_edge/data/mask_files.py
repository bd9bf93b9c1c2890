"""Masks as the files of labelling tools: labelme, CVAT, Label Studio, YOLO, and PNG of indices."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool
from PIL import Image

from sam_edge.data.rle import decode_mask
from sam_edge.segment.outlines import one_outline, outlines
from sam_edge.segment.records import box_of

MaskFormat = Literal["coco", "labelme", "cvat", "label-studio", "yolo", "png"]
LABEL = "object"
"""What every mask is called: nothing is known of its kind."""
LABELME_VERSION = "5.5.0"
"""Of labelme's first files with masks this one's form is."""
RLE_SIZES = (3, 4, 8, 16)
"""Bits of the lengths that Label Studio's runs may have."""


@dataclass(frozen=True)
class MaskedPicture:
    """A picture's masks, as records with COCO run lengths."""

    name: str
    """File name, with folders where there are some."""
    width: int
    height: int
    records: list[dict[str, Any]]

    def masks(self) -> Iterator[Bool[np.ndarray, "h w"]]:
        """The masks that are not empty, one at a time: all at once they may not fit."""
        for record in self.records:
            if record["area"]:
                yield decode_mask(record["segmentation"])


def write_mask_files(folder: Path, form: MaskFormat, pictures: Iterable[MaskedPicture]) -> None:
    """Write pictures' masks into a folder, in the form of one tool."""
    WRITERS[form](folder, pictures)


def _beside(folder: Path, picture: MaskedPicture, suffix: str) -> Path:
    """A picture's own file; two pictures that differ in their ending only keep apart, but as tools want it if alone."""
    path = folder / PurePosixPath(picture.name).with_suffix(suffix)
    if path.exists():
        path = folder / f"{picture.name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# --- labelme


def _labelme(folder: Path, pictures: Iterable[MaskedPicture]) -> None:
    """A JSON beside where each picture lies, with shapes of type `mask`, which have holes and parts."""
    for picture in pictures:
        content: dict[str, Any] = {
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": [_labelme_shape(mask) for mask in picture.masks()],
            "imagePath": PurePosixPath(picture.name).name,
            "imageData": None,
            "imageHeight": picture.height,
            "imageWidth": picture.width,
        }
        _beside(folder, picture, ".json").write_text(json.dumps(content), encoding="utf-8")


def _labelme_shape(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    left, top, right, bottom = box_of(mask)
    file = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(file, "PNG")
    return {
        "label": LABEL,
        "points": [[left, top], [right, bottom]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(file.getvalue()).decode("ascii"),
    }


# --- CVAT


def _cvat(folder: Path, pictures: Iterable[MaskedPicture]) -> None:
    """`annotations.xml`, CVAT for images 1.1: run lengths along the rows of each mask's box."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "annotations.xml").open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        file.write(f"<meta><task><labels><label><name>{LABEL}</name></label></labels></task></meta>\n")
        for number, picture in enumerate(pictures):
            name = quoteattr(picture.name)
            file.write(f'<image id="{number}" name={name} width="{picture.width}" height="{picture.height}">\n')
            for mask in picture.masks():
                left, top, right, bottom = box_of(mask)
                runs = ", ".join(map(str, _runs(mask[top : bottom + 1, left : right + 1]).tolist()))
                file.write(
                    f'<mask label="{LABEL}" source="auto" occluded="0" rle="{runs}" left="{left}" top="{top}" '
                    f'width="{right - left + 1}" height="{bottom - top + 1}" z_order="0"></mask>\n'
                )
            file.write("</image>\n")
        file.write("</annotations>\n")


def _runs(mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """Run lengths along the rows, those outside the mask first."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.diff(np.concatenate([[0, 0] if flat[0] else [0], changes, [flat.size]]))


# --- Label Studio


def _label_studio(folder: Path, pictures: Iterable[MaskedPicture]) -> None:
    """`tasks.json`: pictures to import, with brush labels as predictions, in a setup of `BrushLabels` named `tag`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tasks.json").open("w", encoding="utf-8") as file:
        file.write("[")
        for number, picture in enumerate(pictures):
            result = [
                {
                    "id": f"{number}-{index}",
                    "type": "brushlabels",
                    "from_name": "tag",
                    "to_name": "image",
                    "original_width": picture.width,
                    "original_height": picture.height,
                    "image_rotation": 0,
                    "value": {"format": "rle", "rle": _brush(mask), "brushlabels": [LABEL]},
                }
                for index, mask in enumerate(picture.masks())
            ]
            task = {"data": {"image": picture.name}, "predictions": [{"result": result}]}
            file.write((",\n" if number else "") + json.dumps(task))
        file.write("]\n")


def _brush(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """The bytes of a mask in Label Studio's run lengths: of four channels, all of them 255 in the mask.

    After a head of the number of values (32 bits), bits of a value less one (5) and of four kinds of length less one
    (4 each), a run is a set bit, its length's kind (2), its length less one, and the value: `decode_rle` of
    label_studio_converter/brush.py.
    """
    head = f"{4 * mask.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in RLE_SIZES)
    bits = [head]
    longest = 1 << RLE_SIZES[-1]
    for number, length in enumerate((4 * _runs(mask)).tolist()):
        value = "11111111" if number % 2 else "00000000"
        while length > 0:
            part = min(length, longest)
            kind = next(kind for kind, size in enumerate(RLE_SIZES) if part <= 1 << size)
            bits.append(f"1{kind:02b}{part - 1:0{RLE_SIZES[kind]}b}{value}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


# --- YOLO


def _yolo(folder: Path, pictures: Iterable[MaskedPicture]) -> None:
    """`labels/NAME.txt` of polygons in shares of the picture, a line per mask, and `data.yaml` with the one class."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        lines = []
        for mask in picture.masks():
            corners = one_outline(outlines(mask)) / (picture.width, picture.height)
            lines.append("0 " + " ".join(f"{value:.6f}" for value in corners.ravel()) + "\n")
        _beside(folder / "labels", picture, ".txt").write_text("".join(lines), encoding="utf-8")
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n  0: {LABEL}\n", encoding="utf-8")


# --- PNG


def _png(folder: Path, pictures: Iterable[MaskedPicture]) -> None:
    """A PNG per picture whose pixels are numbers of masks, from 1 on in the records' order, smaller masks on top.

    8 bits where there are at most 255 masks, else 16.
    """
    for picture in pictures:
        kept = [record for record in picture.records if record["area"]]
        index = np.zeros((picture.height, picture.width), np.uint8 if len(kept) <= 255 else np.uint16)
        for number in sorted(range(len(kept)), key=lambda number: -kept[number]["area"]):
            index[decode_mask(kept[number]["segmentation"])] = number + 1
        Image.fromarray(index).save(_beside(folder, picture, ".png"))


WRITERS: dict[str, Callable[[Path, Iterable[MaskedPicture]], None]] = {
    "labelme": _labelme,
    "cvat": _cvat,
    "label-studio": _label_studio,
    "yolo": _yolo,
    "png": _png,
}
"""Every format but COCO, which is always written."""
