"""The race of integer encoders, and how the table of quantization compares answers."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from sam_edge.bench.integers import race
from sam_edge.bench.quantization import Setting
from sam_edge.commands.workshop import integers
from sam_edge.errors import BenchError
from sam_edge.export.parity import answers
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.quantize.task_loss import task_loss
from sam_edge.runtimes.folder import is_exported_folder


@pytest.fixture
def lineage(tiny_slim, tmp_path, photo) -> tuple[str, str]:
    """Folders of a float model and of the same in 8 bits."""
    parent = save_checkpoint(tiny_slim, tmp_path / "float")
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax"))
    return str(parent), str(save_checkpoint(tiny_slim, tmp_path / "int8"))


def test_ours_race_as_sam_edge_opens_them_and_others_by_their_runtime_alone(lineage, monkeypatch):
    opened, integer = {}, {}

    def watched(contenders, **settings):
        for name, contender in contenders.items():
            kinds = {tensor.data_type for tensor in onnx.load(contender.graph).graph.initializer}
            opened[name], integer[name] = is_exported_folder(contender.file), onnx.TensorProto.INT8 in kinds
        return race(contenders, **settings)

    monkeypatch.setattr(integers, "race", watched)
    found = integers.encoder_race(*lineage, "synthetic:2", runtimes=["onnxruntime"], pictures=1, turns=1)
    assert opened == {name: name.endswith(("int8", "float")) for name in found}
    assert integer == {name: not name.endswith("float") for name in found}
    assert all(min(turns.wall_ms) > 0 for turns in found.values())
    assert found["onnxruntime float"].agreement == pytest.approx(1, abs=1e-3)
    assert all(0 < turns.agreement <= 1 for turns in found.values() if turns.agreement is not None)
    assert None not in [turns.agreement for turns in found.values()]


def test_the_race_wants_a_float_model_and_a_quantized_one(lineage):
    parent, quantized = lineage
    for pair in ((quantized, quantized), (parent, parent), (quantized, parent)):
        with pytest.raises(BenchError, match="a float MODEL and a quantized one"):
            integers.encoder_race(*pair, "synthetic:2", runtimes=["onnxruntime"])


def test_answers_diverge_by_the_task_loss_of_a_prompt(tiny_slim, photo):
    (wanted,) = answers(TorchRuntime(tiny_slim), [photo])
    other = replace(wanted, logits=wanted.logits + 1.0, iou=wanted.iou + 0.1)
    assert integers.divergence([wanted], [wanted]) == pytest.approx(0.0, abs=1e-6)
    found = integers.divergence([wanted, wanted], [wanted, other])
    given = (torch.from_numpy(part) for part in (other.logits, other.iou, wanted.logits, wanted.iou))
    assert found == pytest.approx(task_loss(*given).item() / wanted.logits.shape[1] / 2)
    assert found > 0


def test_a_picture_is_encoded_once_for_all_forms_of_the_decoder(tiny_slim, photo, monkeypatch):
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax"))
    calls, encode = [], tiny_slim.encode
    monkeypatch.setattr(tiny_slim, "encode", lambda pixels: calls.append(1) or encode(pixels))
    kept = {}
    first, again = (answers(integers._EncodesOnce(tiny_slim, "cpu", kept, 1), [photo])[0] for _ in range(2))
    np.testing.assert_array_equal(again.logits, first.logits)
    answers(integers._EncodesOnce(tiny_slim, "cpu", kept, 1), [photo[::-1].copy()])
    assert len(calls) == 2
    assert len(kept) == 1


@pytest.mark.filterwarnings("ignore:skipped 1 of 2 unreadable")
def test_the_table_of_quantization_leaves_unreadable_pictures_out(tiny_slim, photo, tmp_path):
    square = [4, 4, 36, 4, 36, 30, 4, 30]
    entry = {"category_id": 1, "segmentation": [square], "bbox": [4, 4, 32, 26], "area": 832, "iscrowd": 0}
    pictures = [{"id": at, "file_name": f"{at}.png", "height": 48, "width": 64} for at in range(2)]
    labels = {
        "images": pictures,
        "annotations": [entry | {"id": 1 + at, "image_id": at} for at in range(2)],
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(labels))
    (tmp_path / "0.png").write_bytes(b"nothing")
    Image.fromarray(np.resize(photo, (48, 64, 3))).save(tmp_path / "1.png")
    parent = str(save_checkpoint(tiny_slim, tmp_path / "float"))
    found, rows = integers.quantization_table(
        parent, "synthetic:2", [str(tmp_path)], [Setting(8, "minmax", False)], [0], calibration_images=1, split="all"
    )
    assert found.agreement == 1
    assert 0 < rows[0].runs[0].agreement <= 1
