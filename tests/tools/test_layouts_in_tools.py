"""Layouts opened by the tools' own code, each from the package index in an environment of its own: nano on two photos.

Masks are compared with the predictor's, which is given the very pixels that the tool hands its encoder.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_edge.export.layout_client import ASKED, expected
from sam_edge.export.layouts import LAYOUTS
from sam_edge.export.parity import mask_agreement
from sam_edge.export.to_layout import write_layout
from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.frame import Frame
from sam_edge.segment.masks import mask_of
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.scaling import Scaling
from tests.tools.environments import environment

pytestmark = pytest.mark.slow
COMMON = ("numpy", "onnxruntime", "opencv-python-headless", "pillow")
TOOLS = {
    # without their desktops and trainers, which their readers of ONNX do not need
    "anylabeling": ("anylabeling", COMMON, ("anylabeling",)),
    "samexporter": ("anylabeling", COMMON, ("samexporter",)),
    "osam": ("osam", (*COMMON, "osam"), ()),
}
"""Per tool: its layout, what is installed with dependencies, and what without."""


@pytest.fixture(scope="module")
def nano_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """nano's exported folders: float, exported here, and the integers that ship."""
    out = tmp_path_factory.mktemp("nano") / "float"
    command = [sys.executable, "-m", "sam_edge", "export-onnx", "nano", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    shipped = shipped_graphs("nano")
    assert shipped is not None
    return {"fp32": out, "int8": shipped}


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[np.ndarray]:
    files = sorted((shared_data / "coco128").glob("*.jpg"))[:2]
    return [np.array(Image.open(file).convert("RGB")) for file in files]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_s_own_code_finds_the_predictor_s_masks(
    tool: str, precision: str, nano_graphs: dict[str, Path], photos: list[np.ndarray], tmp_path: Path, request
) -> None:
    layout, packages, alone = TOOLS[tool]
    python = environment(tool, packages, alone, request.config.cache.mkdir("tools"))
    write_layout(nano_graphs[precision], tmp_path / "files", layout, photos, "nano", "nano")
    asked = {f"prompt_{n}": np.array([[*point, label] for point, label in one]) for n, one in enumerate(ASKED)}
    np.savez(tmp_path / "in.npz", **{f"image_{n}": photo for n, photo in enumerate(photos)}, **asked)
    script = Path(__file__).with_name("ask_layout.py")
    ran = subprocess.run(
        [python, script, tool, tmp_path / "files", tmp_path / "in.npz", tmp_path / "out.npz"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    runtime = OnnxRuntime(nano_graphs[precision])
    predictor, whole = SamPredictor(runtime), SamPredictor(runtime)
    ious, on_whole = [], []
    for number, photo in enumerate(photos):
        predictor.set_image(found[f"seen_{number}"])
        for index in range(len(ASKED)):
            mask, labels = found[f"mask_{number}_{index}"], asked[f"prompt_{index}"][:, 2].astype(int)
            logits = expected(predictor, LAYOUTS[layout], found[f"points_{number}_{index}"], labels)
            wanted = predictor.masks(logits)[0, 0]
            if tool == "samexporter":
                # it enlarges low-resolution masks itself, by way of a square of 1024 px, not the model's
                frame = Frame.of(*mask.shape, 1024)
                wanted = mask_of(np.ascontiguousarray(logits[0, 0]), Scaling.of(frame, logits.shape[-1]))
            ious.append(float(mask_agreement(wanted, mask)[0]))
        whole.set_image(photo)
        on_whole.append(float(np.abs(whole.features - predictor.features).mean()))
    print(f"{tool}, {precision}: mask IoU {np.round(ious, 4)}; embeddings of the whole photo differ by {on_whole}")
    assert np.mean(ious) > (0.99 if precision == "fp32" else 0.95)


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node is not installed")
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "fp32"), ("int8", "q8")])
def test_transformers_js_finds_the_predictor_s_masks(
    precision: str, dtype: str, nano_graphs: dict[str, Path], photos: list[np.ndarray], tmp_path: Path, request
) -> None:
    beside = request.config.cache.mkdir("transformers-js")
    if not (beside / "node_modules").exists():
        # scripts would fetch a GPU's libraries
        packages = ["npm", "install", "--ignore-scripts", "--prefix", beside, "@huggingface/transformers"]
        subprocess.run(packages, check=True, capture_output=True)
    script = beside / "ask.mjs"
    script.write_text(Path(__file__).with_name("ask_transformers.mjs").read_text())
    write_layout(nano_graphs[precision], tmp_path / "nano", "transformers", photos, "nano", "nano")
    images = []
    for number, photo in enumerate(photos):
        file = tmp_path / f"image_{number}.bin"
        file.write_bytes(photo.tobytes())
        images.append({"file": str(file), "width": photo.shape[1], "height": photo.shape[0]})
    prompts = [[[*point, label] for point, label in one] for one in ASKED]
    (tmp_path / "in.json").write_text(json.dumps({"images": images, "prompts": prompts}))
    command = ["node", script, tmp_path / "nano", dtype, tmp_path / "in.json", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    runtime, ious = OnnxRuntime(nano_graphs[precision]), []
    predictor = SamPredictor(runtime)
    for number, shapes in enumerate(json.loads((tmp_path / "shapes.json").read_text())):
        height, width = photos[number].shape[:2]
        pixels = np.fromfile(tmp_path / f"pixels_{number}.bin", np.float32).reshape(shapes["pixels"])
        predictor._embed(pixels, Frame((height, width), tuple(shapes["reshaped"]), runtime.config.image_size))
        for index, prompt in enumerate(np.array(one) for one in prompts):
            masks = np.fromfile(tmp_path / f"masks_{number}_{index}.bin", np.uint8).reshape(3, height, width) > 0
            points, labels = prompt[:, :2] * (width, height), prompt[:, 2].astype(int)
            logits = expected(predictor, LAYOUTS["transformers"], points, labels)
            ious += mask_agreement(predictor.masks(logits)[0], masks).tolist()
    assert np.mean(ious) > (0.99 if precision == "fp32" else 0.95)
