"""Run in a tool's own environment: asks a layout's files by the tool's code, and writes what it saw and found.

    python ask_layout.py TOOL FOLDER IN.npz OUT.npz

IN holds pictures `image_0`, ... (RGB) and prompts as shares of the picture, `prompt_0`, ... (rows of x, y, label); OUT
has `seen_I`, what the encoder is handed (the picture before it is normalised, or 1 x 3 x S x S `pixels`), `used_I`, the
height and width of what the picture fills of it, `mask_I_P`, and `points_I_P` in the masks' pixels.
"""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Ask = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Answers = Iterator[tuple[np.ndarray, tuple[int, int], Ask]]


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
    yield from _fitted(SegmentAnythingONNX(str(folder / "encoder.onnx"), str(folder / "decoder.onnx")), images)


def xanylabeling(folder: Path, images: list[np.ndarray]) -> Answers:
    """By its own manager of models, which reads config.yaml, without a window."""
    from anylabeling import config
    from anylabeling.services.auto_labeling.model_manager import ModelManager
    from PyQt6.QtCore import QCoreApplication, QEventLoop, QTimer

    # as its main program does at its start
    config.current_config_file = str(Path.home() / ".xanylabelingrc")
    app = QCoreApplication([])
    manager, loop = ModelManager(), QEventLoop()
    said: list[str] = []
    manager.new_model_status.connect(said.append)
    manager.model_loaded.connect(loop.quit)
    QTimer.singleShot(120_000, loop.quit)
    assert manager.load_custom_model(str(folder / "config.yaml")), said
    loop.exec()
    assert manager.loaded_model_config, said
    yield from _fitted(manager.loaded_model_config["model"].model, images)
    del app


def _fitted(model: Any, images: list[np.ndarray]) -> Answers:
    """By the class that AnyLabeling and X-AnyLabeling both have: pictures lie in the corner of a black one."""
    given = {}
    run = model.run_encoder

    def watched(inputs, *rest):
        given["inputs"] = inputs
        return run(inputs, *rest)

    model.run_encoder = watched
    for image in images:
        embedding = model.encode(image)
        seen = next(iter(given["inputs"].values())).astype(np.uint8)
        # what lies beside a picture is black, and no part of the masks that it is cut to
        height, width = (round(side * embedding["transform_matrix"][0, 0]) for side in image.shape[:2])

        def ask(points, labels, embedding=embedding, seen=seen, size=(height, width)):
            embedding = {**embedding, "original_size": seen.shape[:2], "transform_matrix": np.eye(3)}
            placed = points * (size[1], size[0])
            return model.predict_masks(embedding, marks(placed, labels))[0, 0] > 0, placed

        yield seen, (height, width), ask


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

        yield seen, seen.shape[:2], ask


def osam(folder: Path, images: list[np.ndarray]) -> Answers:
    """By the lines of the folder's README.md."""
    _run_readme(folder)
    import osam
    from osam.types import Prompt

    model = osam.apis.get_model_type_by_name("sam:latest")()
    for image in images:
        embedding = model.encode_image(image)

        def ask(points, labels, embedding=embedding, image=image):
            placed = points * (image.shape[1], image.shape[0])
            prompt = Prompt(points=placed, point_labels=labels)
            # an annotation's mask is cut to its box
            return model._generate_mask_from_image_embedding(image_embedding=embedding, prompt=prompt), placed

        yield image, image.shape[:2], ask


def labelme(folder: Path, images: list[np.ndarray]) -> Answers:
    """By the session that its window has, after the lines of the folder's README.md."""
    _run_readme(folder)
    # its package's own start loads the desktop
    for package in ("labelme", "labelme._automation"):
        spec = importlib.util.find_spec(package)
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = list(spec.submodule_search_locations)
    session = importlib.import_module("labelme._automation._osam_session").OsamSession("sam:latest")
    for number, image in enumerate(images):

        def ask(points, labels, number=number, image=image):
            placed = points * (image.shape[1], image.shape[0])
            (found,) = session.run(image, str(number), placed, labels).annotations
            box, mask = found.bounding_box, np.zeros(image.shape[:2], bool)
            mask[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = found.mask
            return mask, placed

        yield image, image.shape[:2], ask


def _run_readme(folder: Path) -> None:
    os.chdir(folder)
    exec(Path("README.md").read_text().split("```python\n")[1].split("```")[0], {})


def optimum(folder: Path, images: list[np.ndarray]) -> Answers:
    """By its class for any graph, since it has none for SAM, behind transformers' processor of pixels and prompts."""
    from optimum.exporters.onnx.model_configs import SamOnnxConfig
    from optimum.onnxruntime import ORTModelForCustomTasks
    from transformers import SamConfig, SamProcessor

    processor = SamProcessor.from_pretrained(folder)
    suffix = "_quantized" if (folder / "onnx" / "vision_encoder_quantized.onnx").exists() else ""
    encoder, decoder = (
        ORTModelForCustomTasks.from_pretrained(folder, subfolder="onnx", file_name=f"{name}{suffix}.onnx")
        for name in ("vision_encoder", "prompt_encoder_mask_decoder")
    )
    for graph in (encoder, decoder):
        # what its exporter would have written
        own = SamOnnxConfig(SamConfig.from_pretrained(folder), variant="split", vision_encoder=graph is encoder)
        assert (list(graph.input_names), list(graph.output_names)) == (list(own.inputs), list(own.outputs))
    for image in images:
        pixels = processor(image, return_tensors="pt")
        embeddings = encoder(pixel_values=pixels["pixel_values"])

        def ask(points, labels, embeddings=embeddings, image=image):
            placed = points * (image.shape[1], image.shape[0])
            marks = {"input_points": [[placed.tolist()]], "input_labels": [[labels.tolist()]]}
            inputs = processor(image, **marks, return_tensors="pt")
            prompts = {"input_points": inputs["input_points"].float(), "input_labels": inputs["input_labels"]}
            found = decoder(**prompts, **embeddings)
            sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
            (masks,) = processor.image_processor.post_process_masks(found.pred_masks, *sizes)
            return masks[0].numpy(), placed

        yield pixels["pixel_values"].numpy(), tuple(pixels["reshaped_input_sizes"][0].tolist()), ask


def main() -> None:
    tool, folder, given, out = sys.argv[1], *map(Path, sys.argv[2:])
    values = np.load(given)
    images = [values[name] for name in sorted(values) if name.startswith("image_")]
    prompts = [values[name] for name in sorted(values) if name.startswith("prompt_")]
    found = {}
    for number, (seen, used, ask) in enumerate(globals()[tool](folder, images)):
        found[f"seen_{number}"], found[f"used_{number}"] = seen, np.array(used)
        for index, prompt in enumerate(prompts):
            mask, placed = ask(prompt[:, :2], prompt[:, 2].astype(int))
            found[f"mask_{number}_{index}"] = mask
            found[f"points_{number}_{index}"] = placed
    np.savez_compressed(out, **found)


main()
