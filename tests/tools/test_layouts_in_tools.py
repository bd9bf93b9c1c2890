"""Layouts opened by the tools' own code, each from its package index in an environment of its own, and the others by
`sam_edge.export.layout_client`, which is written from the loaders of tools that are no packages.

Masks are compared with the predictor's, which is given the very pixels that the tool hands its encoder: on two photos,
by three prompts, of nano, and of vit_t and vit_b with random weights, whose masks are noise and forgive nothing.
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sam_edge.export import layout_client, to_layout
from sam_edge.export.layout_client import ASKED, expected
from sam_edge.export.layouts import LAYOUTS
from sam_edge.export.parity import mask_agreement
from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.frame import Frame
from sam_edge.segment.known import shipped_folder
from sam_edge.segment.masks import mask_of
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.scaling import Scaling
from tests.tools.environments import environment

pytestmark = pytest.mark.slow
Form = tuple[str, str]
FORMS: tuple[Form, ...] = (("nano", "fp32"), ("nano", "int8"), ("vit_t", "fp32"), ("vit_b", "fp32"))
"""Models and precisions."""
SMALLEST_IOU = {"fp32": 0.99, "int8": 0.95}
COMMON = ("numpy", "onnxruntime", "opencv-python-headless", "pillow")
TOOLS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # without their desktops and trainers, which their readers of ONNX do not need
    "anylabeling": ("anylabeling", COMMON, ("anylabeling",)),
    "samexporter": ("anylabeling", COMMON, ("samexporter",)),
    "xanylabeling": ("anylabeling", ("x-anylabeling-cvhub[cpu]",), ()),
    "osam": ("osam", (*COMMON, "osam"), ()),
    "labelme": ("osam", (*COMMON, "osam"), ("labelme",)),
    "optimum": ("transformers", ("optimum-onnx[onnxruntime]", "torch", "pillow"), ()),
    "transformers.js": ("transformers", (), ()),
}
"""Per tool: its layout, what is installed with dependencies, and what without."""
Found = dict[str, np.ndarray]
Export = Callable[..., Path]
Written = Callable[[Form, str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[np.ndarray]:
    files = sorted((shared_data / "coco128").glob("*.jpg"))[:2]
    return [np.array(Image.open(file).convert("RGB")) for file in files]


class Remembering(OnnxRuntime):
    """Embeds the same pixels once: most of these tests' time would be the predictor's encoder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: dict[str, Any] = {}

    def encode(self, pixels: np.ndarray) -> Any:
        """Image embeddings."""
        name = hashlib.sha256(pixels.tobytes()).hexdigest()
        if name not in self.known:
            self.known[name] = super().encode(pixels)
        return self.known[name]


@pytest.fixture(scope="module")
def opened() -> Callable[[Path], Remembering]:
    """An exported folder's runtime, opened once."""
    return functools.cache(Remembering)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """A model's exported folder, made once; nano's integers ship, in the dialect for processors."""

    @functools.cache
    def export(form: Form, dialect: str = "cpu") -> Path:
        model, precision = form
        spec = model if model == "nano" else f"random:{model}"
        if precision == "int8":
            shipped = shipped_graphs(model)
            assert shipped is not None
            if dialect == "cpu":
                return shipped
            spec = str(shipped_folder(f"{model}-int8"))
        out = tmp_path_factory.mktemp("exported") / model
        options = ["--precision", precision, "--dialect", dialect, "--out", str(out)]
        ran = subprocess.run([sys.executable, "-m", "sam_edge", "export-onnx", spec, *options], capture_output=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return out

    return export


@pytest.fixture(scope="module")
def written(
    exported: Export,
    opened: Callable[[Path], Remembering],
    photos: list[np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Written:
    """A model in a layout, written once: its folder, and what `layout.json` says."""

    @functools.cache
    def write(form: Form, layout: str) -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp(layout) / form[0]
        dialect = "tensorrt" if form[1] == "int8" and LAYOUTS[layout].engines else "cpu"
        folder = exported(form, dialect)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(to_layout, "OnnxRuntime", lambda *_, **__: opened(folder))
            return out, to_layout.write_layout(folder, out, layout, photos, form[0], form[0])

    return write


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_a_client_written_from_the_loaders_finds_the_predictor_s_masks(
    form: Form, layout: str, written: Written
) -> None:
    iou = written(form, layout)[1]["mask_iou"]
    print(f"{layout}, {form}: mask IoU {iou:.4f}")
    assert iou > SMALLEST_IOU[form[1]]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_the_tool_s_own_code_finds_the_predictor_s_masks(
    form: Form,
    tool: str,
    exported: Export,
    opened: Callable[[Path], Remembering],
    written: Written,
    photos: list[np.ndarray],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    layout, packages, alone = TOOLS[tool]
    cache = request.config.cache.mkdir("tools")
    folder, _ = written(form, layout)
    if tool == "transformers.js":
        found = asked_in_node(cache, folder, form[1], photos, tmp_path)
    else:
        found = asked_in_python(environment(tool, packages, alone, cache), tool, folder, photos, tmp_path)
    runtime = opened(exported(form))
    predictor, whole = SamPredictor(runtime), SamPredictor(runtime)
    ious, on_whole = [], []
    for number, photo in enumerate(photos):
        seen, (height, width) = found[f"seen_{number}"], found[f"used_{number}"].tolist()
        if seen.ndim == 4:
            frame = Frame(photo.shape[:2], (height, width), runtime.config.image_size)
            predictor._keep(runtime.encode(seen), frame)
            height, width = photo.shape[:2]
        else:
            predictor.set_image(seen)
        whole.set_image(photo)
        for index, prompt in enumerate(np.array([[*point, label] for point, label in one]) for one in ASKED):
            masks, labels = found[f"mask_{number}_{index}"], prompt[:, 2].astype(int)
            masks = masks if masks.ndim == 3 else masks[None]
            logits = expected(predictor, LAYOUTS[layout], found[f"points_{number}_{index}"], labels)
            wanted = predictor.masks(logits)[0]
            if tool == "samexporter":
                # it enlarges low-resolution masks itself, by way of a square of 1024 px, not the model's
                scaling = Scaling.of(Frame.of(*masks.shape[1:], 1024), logits.shape[-1])
                wanted = mask_of(np.ascontiguousarray(logits[0, 0]), scaling)[None]
            # neither empty nor everything, which would be alike by chance
            assert 0 < wanted.mean() < 1
            ious += mask_agreement(wanted, masks).tolist()
            of_photo = whole.masks(expected(whole, LAYOUTS[layout], prompt[:, :2] * photo.shape[1::-1], labels))[0]
            on_whole += mask_agreement(scaled(of_photo, height, width), masks[:, :height, :width]).tolist()
    means = f"{np.mean(ious):.4f}; with the predictor's of the whole photo {np.mean(on_whole):.4f}"
    print(f"{tool}, {form}: mask IoU {np.round(ious, 4)}, mean {means}")
    assert np.mean(ious) > SMALLEST_IOU[form[1]]


def scaled(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks at another size."""
    images = (Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST) for mask in masks)
    return np.stack([np.asarray(image) for image in images])


def asked_in_python(python: Path, tool: str, folder: Path, photos: list[np.ndarray], work: Path) -> Found:
    """What `ask_layout.py` finds with a tool's interpreter."""
    prompts = {f"prompt_{n}": np.array([[*point, label] for point, label in one]) for n, one in enumerate(ASKED)}
    np.savez(work / "in.npz", **{f"image_{n}": photo for n, photo in enumerate(photos)}, **prompts)
    script = Path(__file__).with_name("ask_layout.py")
    # settings, which desktops keep in the user's folder, are nobody's here; and there is no screen
    changed = {"HOME": str(work), "QT_QPA_PLATFORM": "offscreen"}
    ran = subprocess.run(
        [python, script, tool, folder, work / "in.npz", work / "out.npz"],
        capture_output=True,
        text=True,
        env={**os.environ, **changed},
    )
    if "ImportError: lib" in ran.stderr:
        pytest.skip(f"{tool} needs a library of the desktop: {ran.stderr.splitlines()[-1]}")
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(np.load(work / "out.npz"))


def asked_in_node(cache: Path, folder: Path, precision: str, photos: list[np.ndarray], work: Path) -> Found:
    """The same of transformers.js, by `ask_transformers.mjs`."""
    if shutil.which("npm") is None:
        pytest.skip("Node is not installed")
    beside = cache / "transformers-js"
    beside.mkdir(exist_ok=True)
    if not (beside / "node_modules").exists():
        # scripts would fetch a GPU's libraries
        packages = ["npm", "install", "--ignore-scripts", "--prefix", beside, "@huggingface/transformers"]
        subprocess.run(packages, check=True, capture_output=True)
    script = beside / "ask.mjs"
    script.write_text(Path(__file__).with_name("ask_transformers.mjs").read_text())
    images = []
    for number, photo in enumerate(photos):
        file = work / f"image_{number}.bin"
        file.write_bytes(photo.tobytes())
        images.append({"file": str(file), "width": photo.shape[1], "height": photo.shape[0]})
    prompts = [[[*point, label] for point, label in one] for one in ASKED]
    (work / "in.json").write_text(json.dumps({"images": images, "prompts": prompts}))
    command = ["node", script, folder, {"fp32": "fp32", "int8": "q8"}[precision], work / "in.json", work]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = {}
    for number, shapes in enumerate(json.loads((work / "shapes.json").read_text())):
        height, width = photos[number].shape[:2]
        pixels = np.fromfile(work / f"pixels_{number}.bin", np.float32)
        found[f"seen_{number}"], found[f"used_{number}"] = (
            pixels.reshape(shapes["pixels"]),
            np.array(shapes["reshaped"]),
        )
        for index, prompt in enumerate(np.array(one) for one in prompts):
            masks = np.fromfile(work / f"masks_{number}_{index}.bin", np.uint8)
            found[f"mask_{number}_{index}"] = masks.reshape(3, height, width) > 0
            found[f"points_{number}_{index}"] = prompt[:, :2] * (width, height)
    return found


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("form", FORMS[:2], ids="-".join)
def test_the_onnx_runtime_that_tools_were_built_with_opens_it(
    form: Form,
    layout: str,
    exported: Export,
    opened: Callable[[Path], Remembering],
    written: Written,
    photos: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The C++ wrapper asks for 1.14.1, of 2023; there are wheels of 1.15 for Python 3.11."""
    if sys.version_info >= (3, 12):
        pytest.skip("there is no onnxruntime 1.15 for this Python")
    python = environment("old", ("onnxruntime==1.15.0", "numpy<2"), (), request.config.cache.mkdir("tools"))

    class Old:
        """A session in the other environment."""

        def __init__(self, graph: Path, *_: object, **__: object) -> None:
            self.graph = graph

        def run(self, names: list[str] | None, given: Found) -> list[np.ndarray]:
            np.savez(tmp_path / "in.npz", **given)
            script = Path(__file__).with_name("run_graph.py")
            command = [python, script, self.graph, tmp_path / "in.npz", tmp_path / "out.npz"]
            ran = subprocess.run(command, capture_output=True, text=True)
            assert ran.returncode == 0, ran.stderr[-2000:]
            found = np.load(tmp_path / "out.npz")
            return [found[name] for name in names or found.files]

    folder, _ = written(form, layout)
    monkeypatch.setattr(layout_client, "ort", SimpleNamespace(InferenceSession=Old))
    iou = layout_client.prove(folder, LAYOUTS[layout], layout, opened(exported(form)), form[1], photos[:1])
    print(f"{layout}, {form}: mask IoU {iou:.4f}")
    assert iou > SMALLEST_IOU[form[1]]
