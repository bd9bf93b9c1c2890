"""sam_edge.data.mask_files: what each format says of masks is read back to the same pixels.

The readers here are written from the tools' own: labelme/utils/shape.py, CVAT's documentation of its XML,
label_studio_converter/brush.py (`decode_rle`), Ultralytics' polygons in shares of the picture.
"""

import base64
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_edge.data.mask_files import WRITERS, MaskedPicture, write_mask_files
from sam_edge.data.rle import encode_mask
from tests.segment.test_outlines import filled

SIZE = (41, 57)


def some_masks() -> list[np.ndarray]:
    """One with a hole and two parts, a pixel, one of the whole picture, a random one, and an empty one."""
    ring = np.zeros(SIZE, bool)
    ring[5:20, 6:30] = True
    ring[9:12, 10:20] = ring[30:35, 40:57] = False
    ring[30:35, 40:57] = True
    pixel = np.zeros(SIZE, bool)
    pixel[40, 0] = True
    rng = np.random.default_rng(0)
    noise = rng.random(SIZE) < 0.4
    return [ring, pixel, np.ones(SIZE, bool), noise, np.zeros(SIZE, bool)]


def picture(name: str, masks: list[np.ndarray]) -> MaskedPicture:
    records = [{"segmentation": encode_mask(mask), "area": int(mask.sum())} for mask in masks]
    return MaskedPicture(name, SIZE[1], SIZE[0], records)


def read_labelme(folder: Path) -> list[np.ndarray]:
    found = []
    for shape in json.loads((folder / "below" / "a.json").read_text())["shapes"]:
        (x0, y0), (x1, y1) = shape["points"]
        mask = np.zeros(SIZE, bool)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            mask[y0 : y1 + 1, x0 : x1 + 1] = np.array(image)
        found.append(mask)
    return found


def read_cvat(folder: Path) -> list[np.ndarray]:
    root = ET.parse(folder / "annotations.xml").getroot()
    (image,) = root.findall("image")
    assert image.attrib == {"id": "0", "name": "below/a.jpg", "width": "57", "height": "41"}
    found = []
    for element in image:
        left, top, width, height = (int(element.attrib[key]) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in element.attrib["rle"].split(",")]
        values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        mask = np.zeros(SIZE, bool)
        mask[top : top + height, left : left + width] = values.reshape(height, width)
        found.append(mask)
    return found


def read_label_studio(folder: Path) -> list[np.ndarray]:
    ((task),) = json.loads((folder / "tasks.json").read_text())
    return [unbrushed(entry["value"]["rle"]) for entry in task["predictions"][0]["result"]]


def unbrushed(values: list[int], size: tuple[int, ...] = SIZE) -> np.ndarray:
    bits, at = "".join(f"{value:08b}" for value in values), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < total:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        out += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    return np.array(out, np.uint8).reshape(*size, 4)[..., 3] == 255


def read_yolo(folder: Path) -> list[np.ndarray]:
    found = []
    for line in (folder / "labels" / "below" / "a.txt").read_text().splitlines():
        kind, *shares = line.split()
        assert kind == "0"
        corners = np.array(shares, float).reshape(-1, 2) * (SIZE[1], SIZE[0])
        found.append(filled([np.rint(corners)], *SIZE))
    return found


def read_png(folder: Path) -> list[np.ndarray]:
    index = np.array(Image.open(folder / "below" / "a.png"))
    return [index == number for number in range(1, 5)]


READERS = {
    "labelme": read_labelme,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "yolo": read_yolo,
    "png": read_png,
}


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_masks_are_read_back_to_the_pixel(form, tmp_path: Path) -> None:
    masks = some_masks()
    write_mask_files(tmp_path / form, form, [picture("below/a.jpg", masks)])
    wanted = masks[:-1]
    if form == "png":
        # a pixel has one number: the smallest mask's
        order = sorted(range(4), key=lambda number: masks[number].sum())
        wanted = [masks[number] & ~np.any([masks[o] for o in order[: order.index(number)]], 0) for number in range(4)]
        wanted[order[0]] = masks[order[0]]
    found = READERS[form](tmp_path / form)
    assert len(found) == len(wanted)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(other, one)


def test_many_masks_need_sixteen_bits_and_two_endings_keep_apart(tmp_path: Path) -> None:
    one = np.zeros(SIZE, bool)
    one[3, 4] = True
    pictures = [picture("a.jpg", [one] * 300), picture("a.png", [one])]
    write_mask_files(tmp_path / "png", "png", pictures)
    assert np.array(Image.open(tmp_path / "png" / "a.png")).max() == 300
    assert np.array(Image.open(tmp_path / "png" / "a.png.png")).max() == 1


def test_a_run_is_as_long_as_any_picture_s(tmp_path: Path) -> None:
    large = np.zeros((300, 400), bool)
    large[100:, :] = True
    record = {"segmentation": encode_mask(large), "area": int(large.sum())}
    write_mask_files(tmp_path, "label-studio", [MaskedPicture("a.jpg", 400, 300, [record])])
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    values = task["predictions"][0]["result"][0]["value"]["rle"]
    np.testing.assert_array_equal(unbrushed(values, large.shape), large)
