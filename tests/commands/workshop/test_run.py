"""`sam-edge run`: one report of what was measured, and steps that are done once."""

import json
import re

import pytest

from sam_edge.bench.memory import Taken
from sam_edge.commands.device import bench
from sam_edge.commands.workshop import run as command
from sam_edge.commands.workshop.recipe import BenchRecipe, EvaluateRecipe, QuantizeRecipe, Recipe
from sam_edge.compress.distil import DistilOptions
from sam_edge.compress.slimming import SlimOptions
from sam_edge.export.to_tensorrt import TrtOptions
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.runtimes.openvino_runtime import float_runtimes


@pytest.fixture
def recipe(small_slim, tmp_path) -> Recipe:
    return Recipe(
        model=str(save_checkpoint(small_slim, tmp_path / "model")),
        images="synthetic:12:1",
        data="synthetic:24:2",
        compress=SlimOptions(distil=DistilOptions(epochs=1)),
        quantize=QuantizeRecipe(calibration_images=2),
        engine=TrtOptions(targets=()),
        evaluate=EvaluateRecipe(limit=1),
        bench=BenchRecipe(warmup=0, runs=1),
    )


def test_a_run_reports_every_stage_and_a_second_one_repeats_nothing(recipe, tmp_path, monkeypatch):
    # a fresh process per stage would take most of this test's time; bench has tests of its own
    monkeypatch.setattr(bench, "run_alone", lambda command, timeout_s, environment: Taken(10**8, 1.0, 1.0))
    out = tmp_path / "run"
    said: list[str] = []
    result = command.run(recipe, out, device="cpu", say=said.append)
    report = json.loads((out / "report" / "report.json").read_text())
    by_name = {step["name"]: step for step in report["steps"]}
    rivals = [f"base-{form}" for form in float_runtimes() if form != "onnxruntime"]
    assert all(by_name[name]["latency_ms"] > 0 for name in rivals)
    assert "Over the best that `base` does" in (out / "report" / "report.md").read_text()
    # what it ends with is of the first model in float and the last, on one runtime
    assert result["summary"].startswith("From `base-onnx` to `quantized-onnx`:\n\n- Encode: ")
    names = [step["name"] for step in report["steps"] if step["name"] not in rivals]
    assert names == ["base", "base-onnx", "compressed", "compressed-onnx", "quantized", "quantized-onnx"]
    by_name = {step["name"]: step for step in result["steps"]}
    assert by_name["compressed"]["parameters"] < by_name["base"]["parameters"]
    assert by_name["quantized-onnx"]["file_bytes"] < by_name["compressed-onnx"]["file_bytes"]
    assert all(by_name[name]["miou_box"] is not None for name in names)
    for name in ("base", "compressed", "quantized"):
        # a checkpoint is as accurate as its graphs, which agree with it; its times are its own
        assert by_name[name]["miou_point"] == by_name[f"{name}-onnx"]["miou_point"]
    assert by_name["quantized"]["latency_ms"] is None
    assert by_name["base"]["latency_ms"] != by_name["base-onnx"]["latency_ms"]
    # each step is announced by its number, of as many as there are
    begun = [text for text in said if text.endswith("...")]
    assert [text.split("]")[0] for text in begun] == [f"[{number}/{len(begun)}" for number in range(1, len(begun) + 1)]
    captions = " ".join(picture["caption"] for picture in report["pictures"])
    gains = [float(text) for text in re.findall(r"less the first's: ([+-][0-9]+[.][0-9]+)", captions)]
    assert len(gains) == len(report["pictures"]) - 1
    assert gains == sorted(gains)
    assert report["layers"][0]["ms"] == max(row["ms"] for row in report["layers"])
    rounding = {row["name"]: row for row in report["rounding"]}
    assert list(rounding) == sorted(rounding, key=lambda name: -rounding[name]["nats"])
    timed = {name for name, row in rounding.items() if row["ms"] is not None}
    assert timed == {name for name in rounding if name.startswith("image_encoder") and "products" not in name}
    assert "Widths per block" in (out / "report" / "report.md").read_text()
    assert "data:image/png" in (out / "report" / "report.html").read_text()

    for done in ("compress", "quantize", "to_onnx", "evaluate_prompts", "bench"):
        monkeypatch.setattr(command, done, lambda *a, **k: pytest.fail("done twice"))
    again: list[str] = []
    assert command.run(recipe, out, device="cpu", say=again.append)["steps"] == result["steps"]
    assert all("skipped" in text for text in again[:-1])


def test_a_changed_or_lost_result_is_made_again(tmp_path):
    ledger = command.Ledger(tmp_path, lambda text: None)
    made = tmp_path / "thing"
    count = 0

    def work() -> dict[str, int]:
        nonlocal count
        count += 1
        made.mkdir(exist_ok=True)
        (made / "file").write_text("content")
        return {"count": count}

    assert ledger.step("s", {"a": 1}, made, work)["count"] == 1
    assert ledger.step("s", {"a": 1}, made, work)["count"] == 1
    assert ledger.step("s", {"a": 2}, made, work)["count"] == 2
    (made / "file").write_text("damaged")
    assert ledger.step("s", {"a": 2}, made, work)["count"] == 3
    record = tmp_path / "steps" / "s.json"
    for damaged in ("", "[]", "[" * 100_000, '{"key": 1}', record.read_text().replace("step_seconds", "seconds")):
        record.write_text(damaged)
        before = count
        assert ledger.step("s", {"a": 2}, made, work)["count"] == before + 1
