"""Run in a tool's own environment: asks a layout's files by the tool's code, and writes what it saw and found.

    python ask_layout.py TOOL FOLDER IN.npz OUT.npz

IN holds pictures `image_0`, ... (RGB) and prompts as shares of the picture, `prompt_0`, ... (rows of x, y, label); OUT
has `seen_I`, the picture as it is handed to the encoder before it is normalised, `mask_I_P`, and `points_I_P` in its
pixels.
"""

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Answers = Iterator[tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], np.ndarray]]]


def marks(points: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """AnyLabeling's form of a prompt."""
    if labels[0] == 2:
        return [{"type": "rectangle", "data": points.ravel().tolist()}]
    return [{"type": "point", "data": list(p), "label": int(q)} for p, q in zip(points, labels, strict=True)]


def anylabeling(folder: Path, images: list[np.ndarray]) -> Answers:
    import anylabeling.services

    # its package's own start loads the desktop
    package = "anylabeling.services.auto_labeling"
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = [f"{path}/auto_labeling" for path in anylabeling.services.__path__]
    SegmentAnythingONNX = importlib.import_module(f"{package}.sam_onnx").SegmentAnythingONNX
    model = SegmentAnythingONNX(str(folder / "encoder.onnx"), str(folder / "decoder.onnx"))
    given = {}
    run = model.run_encoder
    model.run_encoder = lambda inputs: run(given.setdefault("inputs", inputs))
    for image in images:
        given.clear()
        embedding = model.encode(image)
        seen = next(iter(given["inputs"].values())).astype(np.uint8)
        # what lies beside a picture is black, and no part of the masks that it is cut to
        height, width = (round(side * embedding["transform_matrix"][0, 0]) for side in image.shape[:2])

        def ask(points, labels, embedding=embedding, seen=seen, size=(height, width), image=image):
            embedding = {**embedding, "original_size": seen.shape[:2], "transform_matrix": np.eye(3)}
            placed = points * (size[1], size[0])
            return model.predict_masks(embedding, marks(placed, labels))[0, 0] > 0, placed

        yield seen, ask


def samexporter(folder: Path, images: list[np.ndarray]) -> Answers:
    from samexporter.sam_onnx import SegmentAnythingONNX

    model = SegmentAnythingONNX(str(folder / "encoder.onnx"), str(folder / "decoder.onnx"))
    given = {}
    run = model.run_encoder
    model.run_encoder = lambda inputs: run(given.setdefault("inputs", inputs))
    for image in images:
        given.clear()
        embedding = model.encode(image[..., ::-1])
        seen = next(iter(given["inputs"].values())).astype(np.uint8)

        def ask(points, labels, embedding=embedding, seen=seen):
            size = seen.shape[:2]
            placed = points * (size[1], size[0])
            embedding = {**embedding, "original_size": size, "resized_size": size}
            return model.predict_masks(embedding, marks(placed, labels))[0, 0] > 0, placed

        yield seen, ask


def osam(folder: Path, images: list[np.ndarray]) -> Answers:
    from osam._models.sam import _models
    from osam.types import Prompt
    from osam.types._blob import Blob

    class Local(Blob):
        """A file that needs no download."""

        path = property(lambda self: self.url)

        def pull(self, *_: object, **__: object) -> None:
            pass

    class Ours(_models.Sam):
        name = "ours"

    Ours._blobs = {part: Local(str(folder / f"{part}.onnx"), "sha256:0") for part in ("encoder", "decoder")}
    model = Ours()
    for image in images:
        embedding = model.encode_image(image)

        def ask(points, labels, embedding=embedding, image=image):
            placed = points * (image.shape[1], image.shape[0])
            prompt = Prompt(points=placed, point_labels=labels)
            # an annotation's mask is cut to its box
            return model._generate_mask_from_image_embedding(image_embedding=embedding, prompt=prompt), placed

        yield image, ask


def main() -> None:
    tool, folder, given, out = sys.argv[1], *map(Path, sys.argv[2:])
    values = np.load(given)
    images = [values[name] for name in sorted(values) if name.startswith("image_")]
    prompts = [values[name] for name in sorted(values) if name.startswith("prompt_")]
    found = {}
    for number, (seen, ask) in enumerate(globals()[tool](folder, images)):
        found[f"seen_{number}"] = seen
        for index, prompt in enumerate(prompts):
            mask, placed = ask(prompt[:, :2], prompt[:, 2].astype(int))
            found[f"mask_{number}_{index}"] = mask
            found[f"points_{number}_{index}"] = placed
    np.savez_compressed(out, **found)


main()
