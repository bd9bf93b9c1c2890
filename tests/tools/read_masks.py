"""Run in the tools' own environment: reads masks by a tool's code, and writes them as an array.

python read_masks.py TOOL FOLDER OUT.npz
"""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image


def label_studio(folder: Path) -> list[np.ndarray]:
    from label_studio_sdk.converter.brush import decode_rle

    (task,) = json.loads((folder / "tasks.json").read_text())
    found = []
    for entry in task["predictions"][0]["result"]:
        shape = entry["original_height"], entry["original_width"], 4
        found.append(decode_rle(entry["value"]["rle"]).reshape(shape)[..., 3] > 0)
    return found


def cvat(folder: Path) -> list[np.ndarray]:
    from datumaro.components.dataset import Dataset

    # it wants the pictures, too
    for image in ElementTree.parse(folder / "annotations.xml").getroot().findall("image"):
        path = folder / "images" / image.attrib["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (int(image.attrib["width"]), int(image.attrib["height"]))).save(path)
    (item,) = Dataset.import_from(str(folder), "cvat")
    return [np.asarray(mask.image, bool) for mask in item.annotations]


tool, folder, out = sys.argv[1], *map(Path, sys.argv[2:])
np.savez_compressed(out, masks=np.stack(globals()[tool](folder)))
