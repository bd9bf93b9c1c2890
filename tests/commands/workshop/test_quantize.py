"""sam_edge.commands.workshop.quantize: the gate and the race, on small models and scenes."""

import json

import pytest

from sam_edge.commands.common import sample_others, sample_pictures
from sam_edge.commands.workshop.quantize import quantize
from sam_edge.errors import BenchError, DataError, QuantizationError
from sam_edge.models.checkpoint import CONFIG, load_checkpoint, save_checkpoint
from sam_edge.quantize.ptq import QuantizeOptions
from sam_edge.runtimes.openvino_runtime import float_runtimes

IMAGES = "synthetic:12:1"
COARSE = QuantizeOptions(weights=3, activations=3, rounding="nearest", prompts_per_image=2, rows=16)
FEW = {"calibration_images": 1, "gate_images": 2}


@pytest.fixture
def checkpoint(small_slim, tmp_path) -> str:
    return str(save_checkpoint(small_slim, tmp_path / "float"))


@pytest.mark.parametrize("data", [None, "synthetic:8:3"], ids=["agreement", "labels"])
def test_the_gate_holds_and_its_report_is_kept(checkpoint, tmp_path, data):
    plain = quantize(checkpoint, IMAGES, tmp_path / "plain", COARSE, max_drop=0.99, gate_data=data, **FEW)
    drop = plain["gate"]["float_score"] - plain["gate"]["score"]
    assert plain["gate"]["raised"] == {}
    # more than half of what was lost must come back
    allowed = max(drop, 0.0) * 0.4 + 1e-6
    gated = quantize(checkpoint, IMAGES, tmp_path / "gated", COARSE, max_drop=allowed, gate_data=data, **FEW)
    gate = gated["gate"]
    assert gate["first_score"] == pytest.approx(plain["gate"]["score"])
    assert gate["float_score"] - gate["score"] <= allowed
    assert gate["measure"] == (data or "agreement with the float model")
    entries = load_checkpoint(tmp_path / "gated").config.quantization
    assert set(gate["sensitivities"]) >= set(entries)
    for name, precision in gate["raised"].items():
        assert (name not in entries) if precision == "float" else entries[name]["bits"] == 8
    step = json.loads((tmp_path / "gated" / CONFIG).read_text())["lineage"][-1]
    assert step["result"]["gate"] == gate


def test_agreement_costs_something_in_three_bits(checkpoint, tmp_path):
    gate = quantize(checkpoint, IMAGES, tmp_path / "q", COARSE, max_drop=0.99, **FEW)["gate"]
    assert gate["float_score"] == 1.0
    assert gate["score"] < 0.99


def test_a_gate_that_nothing_passes_writes_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("sam_edge.commands.workshop.quantize.shown_agreement", lambda wanted, got: next(scores))
    scores = iter([1.0, *[0.5] * 1000])
    with pytest.raises(QuantizationError, match="--max-drop"):
        quantize(checkpoint, IMAGES, tmp_path / "q", COARSE, max_drop=0.0, **FEW)
    assert not (tmp_path / "q").exists()


def test_what_cannot_work_is_found_before_any_calibration(checkpoint, tmp_path):
    def go(**settings):
        return quantize(checkpoint, "nowhere", tmp_path / "q", COARSE, **settings)

    with pytest.raises(BenchError, match="--runtime onnxruntime"):
        go(runtime="torch")
    with pytest.raises(QuantizationError, match="--max-drop"):
        go(max_drop=-1.0)
    with pytest.raises(DataError, match="at least one picture"):
        quantize(checkpoint, IMAGES, tmp_path / "q", COARSE, calibration_images=0)


def test_the_integer_model_is_timed_beside_its_parent(checkpoint, tmp_path):
    speed = quantize(checkpoint, IMAGES, tmp_path / "q", COARSE, calibration_images=1, runtime="onnxruntime")["speed"]
    assert speed["runtime"] == "onnxruntime"
    assert speed["faster"] == (speed["quantized_ms"] < speed["float_ms"])
    assert set(speed["parents_ms"]) == set(float_runtimes())
    assert speed["gain"] == min(speed["parents_ms"].values()) / speed["quantized_ms"]


def test_the_gate_looks_at_pictures_that_were_not_calibrated_on():
    calibrated = sample_pictures(IMAGES, 5, 0)
    others = sample_others(IMAGES, 100, 0, 5)
    assert others
    assert not any(a.shape == b.shape and (a == b).all() for a in calibrated for b in others)
    # where calibration takes everything there are no others
    assert len(sample_others(IMAGES, 3, 0, 100)) == 3
