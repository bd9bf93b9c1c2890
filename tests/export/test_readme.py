"""The README.md of an exported folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_edge.export.parity import Parity
from sam_edge.export.readme import Accuracy, folder_readme, licence
from sam_edge.segment.cost import Cost

PARITY = Parity(0.99812, 0.01, 0.01, 2, 13)


def test_it_says_what_was_exported_how_it_agrees_and_what_each_file_is(fp32) -> None:
    page = (fp32.path / "README.md").read_text()
    assert page.startswith(f"# {fp32.path.name}\n")
    assert "a checkpoint" in page
    assert f"{fp32.parity.mask_iou:.4f}" in page
    for file in fp32.path.glob("*.onnx"):
        assert f"`{file.name}`" in page


def test_the_lines_of_python_run(fp32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (fp32.path / "README.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(fp32.path.parent)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 320, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).save(photo)
    found: dict[str, np.ndarray] = {}
    exec(code.replace("photo.jpg", str(photo)), found)
    assert found["masks"].shape == (1, 300, 320)


def test_accuracy_names_data_and_machine(tiny_config) -> None:
    accuracy = Accuracy("coco128", 26, 176, 0.3941, 0.6213, "a processor, onnxruntime")
    page = folder_readme("m", "nano", "int8", tiny_config, Cost(1, 1, 1, 1, 1), {}, PARITY, accuracy)
    assert (
        "mIoU 0.394 by one point, by the most confident of three masks, and 0.621 by a box (a processor, onnxruntime)"
        in page
    )
    assert "26 pictures of coco128's val split with 176 masks" in page


def test_a_licence_is_that_of_the_known_model_that_weights_go_back_to(tiny_config) -> None:
    assert "Apache-2.0" in licence("nano", tiny_config)
    made = tiny_config.replace(lineage=({"step": "compress", "parent": "vit_b"}, {"step": "quantize"}))
    assert "`vit_b`: Apache-2.0" in licence("slim-int8", made)
    assert "not recorded" in licence("slim-int8", tiny_config)
