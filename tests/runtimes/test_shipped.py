"""nano's graphs that ship: what MODEL `nano` is where there is no torch."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_edge.evaluate.miou import iou
from sam_edge.runtimes import open as opening
from sam_edge.runtimes.folder import ExportedFolder, shipped_graphs
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import KNOWN, shipped_folder
from sam_edge.segment.predictor import SamPredictor

MOST_BYTES = {"nano": 12_000_000, "nano-onnx": 8_000_000}
CUP = np.array([140, 20, 470, 290])


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    with Image.open(shipped_folder("sample") / "photo.jpg") as image:
        return np.array(image.convert("RGB"))


@pytest.fixture(scope="module")
def graphs() -> Path:
    folder = shipped_graphs("nano")
    assert folder is not None
    return folder


def cup(runtime: object, photo: np.ndarray) -> np.ndarray:
    predictor = SamPredictor(runtime)
    predictor.set_image(photo)
    masks, _, _ = predictor.predict(box=CUP, multimask_output=False)
    return masks[0]


@pytest.mark.parametrize("name", MOST_BYTES)
def test_what_ships_stays_small(name: str) -> None:
    size = sum(file.stat().st_size for file in shipped_folder(name).iterdir() if file.suffix != ".png")
    assert 0 < size <= MOST_BYTES[name]


def test_the_graphs_are_of_the_weights_that_ship(graphs: Path) -> None:
    config, parent = ExportedFolder.read(graphs).config, ModelConfig.read(shipped_folder("nano") / "config.json")
    assert config.quantization
    # one step further: quantized
    assert config.lineage[:-1] == parent.lineage
    assert config.lineage[-1]["step"] == "quantize"
    assert config.replace(quantization=None, lineage=parent.lineage) == parent
    assert KNOWN["nano"].config == parent.replace(thresholds=KNOWN["nano"].config.thresholds, lineage=())


def test_nothing_of_the_machine_that_made_them_is_in_them() -> None:
    for name in MOST_BYTES:
        for file in shipped_folder(name).iterdir():
            if file.suffix == ".json":
                text = file.read_text(encoding="utf-8")
                assert "../" not in text
                assert not any(f'"/{root}' in text for root in ("home", "root", "tmp", "work"))


def test_where_torch_is_absent_nano_is_its_graphs(monkeypatch: pytest.MonkeyPatch, photo: np.ndarray) -> None:
    monkeypatch.setattr(opening, "workshop_is_here", lambda: False)
    runtime = opening.open_runtime("nano", device="cpu")
    assert runtime.name == "onnxruntime"
    assert runtime.folder.path == shipped_graphs("nano")
    mask = cup(runtime, photo)
    inside = mask[CUP[1] : CUP[3], CUP[0] : CUP[2]].sum()
    assert mask.shape == photo.shape[:2]
    # by a box most of what is found lies in it, and fills half of it or more
    assert inside / mask.sum() > 0.9
    assert inside > 0.5 * (CUP[2] - CUP[0]) * (CUP[3] - CUP[1])


def test_onnx_runtime_and_openvino_answer_alike(graphs: Path, photo: np.ndarray) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    masks = [cup(opening.open_runtime(graphs, name, "cpu"), photo) for name in ("onnxruntime", "openvino")]
    assert iou(*masks) > 0.97


def test_no_graph_is_loaded_before_it_is_asked(graphs: Path, photo: np.ndarray) -> None:
    runtime = OnnxRuntime(graphs)
    assert runtime._sessions == {}
    cup(runtime, photo)
    assert set(runtime._sessions) == {"encoder", "decoder"}
