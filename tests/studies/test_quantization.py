"""sam_edge.studies.quantization: every setting with every seed, points lost against the float parent."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from sam_edge.export.parity import answers
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.quantize.task_loss import task_loss
from sam_edge.studies import quantization
from sam_edge.studies.quantization import Setting, as_dict, lost, rich_table, settings, write_csv
from sam_edge.studies.repeats import Scores

PICTURES = (0.3, 0.5, 0.7)


def totals(point: float, box: float) -> dict[str, list[list[list[float]]]]:
    """Of one data set of three pictures with a mask each, around these means."""
    return {
        name: [[[value + shift - 0.5, 1] for shift in PICTURES]]
        for name, value in (("miou_point", point), ("miou_box", box))
    }


def scores(point: float, box: float, agreement: float, loss: float, file_bytes: int) -> Scores:
    values = {"miou_point": point, "miou_box": box, "agreement": agreement, "agreement_float_decoder": 0.95}
    return Scores({**values, "loss": loss, "loss_float_decoder": 0.01, "file_bytes": file_bytes}, totals(point, box))


PARENT = scores(0.70, 0.80, 1.0, 0.0, 1000)


def measure(setting: Setting, seed: int) -> Scores:
    """Loses a point per missing bit, and a tenth per seed."""
    less = 0.01 * (8 - setting.bits) + 0.001 * seed
    point, box = 0.70 - less, 0.80 - 2 * less
    return scores(point, box, 0.9, 0.02 + less, 250)


def test_min_max_has_no_twin_scales_and_is_listed_once():
    found = list(settings((8, 6), ("hessian", "minmax"), (True, False)))
    assert found == [
        Setting(8, "hessian", True),
        Setting(8, "hessian", False),
        Setting(8, "minmax", False),
        Setting(6, "hessian", True),
        Setting(6, "hessian", False),
        Setting(6, "minmax", False),
    ]
    assert list(settings((8,), ("minmax",), (False,))) == [Setting(8, "minmax", False)]


def test_a_rounding_that_was_asked_for_is_another_row():
    (named,), (plain,) = (list(settings((8,), ("mse",), (True,), rounding)) for rounding in ("nearest", "auto"))
    assert named.label == f"{plain.label} nearest"


def table(chosen: list[Setting], seeds: range) -> dict[Setting, list[Scores]]:
    return {setting: [measure(setting, seed) for seed in seeds] for setting in chosen}


def test_drops_have_an_interval_over_pictures_and_seeds():
    mse = Setting(6, "mse", True)
    found = as_dict(PARENT, table([mse], range(3)))
    point, box = (tuple(found["rows"][0]["lost"][prompt].values()) for prompt in ("point", "box"))
    # every picture loses the same, so that only seeds make an interval
    assert point == pytest.approx((0.021, 0.020, 0.022), abs=2e-4)
    assert box == pytest.approx((0.042, 0.040, 0.044), abs=4e-4)
    assert "totals" not in json.loads(json.dumps(found))["rows"][0]["runs"][0]
    (alone, _) = lost(PARENT, table([mse], range(1))[mse])
    assert alone.low == pytest.approx(alone.high)


def test_the_table_and_the_csv_say_what_was_measured(tmp_path):
    rows = table(list(settings((8, 6), ("hessian",), (True,))), range(2))
    console = Console(width=200, record=True, file=(tmp_path / "table").open("w"))
    console.print(rich_table(PARENT, rows))
    text = console.export_text()
    assert "W6A6" in text
    assert "2.05 (2.00 to 2.10)" in text
    assert "0.250 x" in text
    assert "0.9500 ± 0.0000" in text
    assert "0.0405 ± 0.0007" in text
    write_csv(PARENT, rows, {"commit": "abc"}, tmp_path / "table.csv")
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [line["bits"] for line in lines] == ["0", "8", "8", "6", "6"]
    assert {line["commit"] for line in lines} == {"abc"}
    assert float(lines[3]["miou_box"]) == pytest.approx(0.76)


def test_answers_diverge_by_the_task_loss_of_a_prompt(tiny_slim, photo):
    (wanted,) = answers(TorchRuntime(tiny_slim), [photo])
    other = replace(wanted, logits=wanted.logits + 1.0, iou=wanted.iou + 0.1)
    assert quantization.divergence([wanted], [wanted]) == pytest.approx(0.0, abs=1e-6)
    found = quantization.divergence([wanted, wanted], [wanted, other])
    given = (torch.from_numpy(part) for part in (other.logits, other.iou, wanted.logits, wanted.iou))
    assert found == pytest.approx(task_loss(*given).item() / wanted.logits.shape[1] / 2)
    assert found > 0


def test_a_picture_is_encoded_once_for_all_forms_of_the_decoder(tiny_slim, photo, monkeypatch):
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax"))
    calls, encode = [], tiny_slim.encode
    monkeypatch.setattr(tiny_slim, "encode", lambda pixels: calls.append(1) or encode(pixels))
    kept = {}
    first, again = (answers(quantization._EncodesOnce(tiny_slim, "cpu", kept, 1), [photo])[0] for _ in range(2))
    np.testing.assert_array_equal(again.logits, first.logits)
    answers(quantization._EncodesOnce(tiny_slim, "cpu", kept, 1), [photo[::-1].copy()])
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
    found, rows = quantization.quantization_table(
        parent, "synthetic:2", [str(tmp_path)], [Setting(8, "minmax", False)], [0], calibration_images=1, split="all"
    )
    assert found["agreement"] == 1
    ((run,),) = rows.values()
    assert 0 < run["agreement"] <= 1
