"""What did not pay: said for each way of being worse, silent on what was not measured."""

import pytest

from sam_edge.bench.report_data import Report, StepReport
from sam_edge.bench.verdict import did_not_pay, gained


def verdict(*steps: StepReport) -> list[str]:
    """What did not pay in a report of these steps."""
    return did_not_pay(Report("t", "c", "r", {}, steps))


def base(**numbers: float) -> StepReport:
    """A float checkpoint."""
    return StepReport("base", None, "checkpoint", "torch", **numbers)  # type: ignore[arg-type]


def test_a_step_slower_than_its_parent_is_named_with_both_numbers() -> None:
    step = StepReport("int8", "base", "onnx int8", "onnxruntime", latency_ms=15.0)
    assert verdict(base(latency_ms=10.0), step) == [
        "`int8` on onnxruntime encodes 1.5x slower than `base` on torch: 15.0 ms against 10.0 ms."
    ]


def test_within_noise_or_faster_is_not_named() -> None:
    steps = [StepReport(f"s{ms}", "base", "compress", "torch", latency_ms=ms) for ms in (10.4, 9.0)]
    assert verdict(base(latency_ms=10.0), *steps) == []


def test_slower_end_to_end_is_named_only_where_encoding_was_not_compared() -> None:
    step = StepReport("s", "base", "compress", "torch", latency_ms=10.0, end_to_end_ms=50.0)
    assert verdict(base(latency_ms=10.0, end_to_end_ms=20.0), step) == []
    assert "is, end to end, 2.5x slower" in verdict(base(end_to_end_ms=20.0), step)[0]


@pytest.mark.parametrize(("after", "named"), [(0.67, True), (0.68, False), (0.71, False)])
def test_a_drop_of_mean_iou_is_named_beyond_two_hundredths(after: float, named: bool) -> None:
    found = verdict(base(miou_box=0.70), StepReport("s", "base", "compress", miou_box=after))
    assert bool(found) == named
    if named:
        assert found == ["`s` loses 0.030 of mean IoU by box against `base`: 0.670 against 0.700."]


def test_both_prompts_are_judged() -> None:
    found = verdict(base(miou_box=0.7, miou_point=0.6), StepReport("s", "base", "engine", miou_box=0.6, miou_point=0.5))
    assert len(found) == 2


def test_a_step_that_should_shrink_the_file_and_does_not_is_named() -> None:
    quantized = StepReport("q", "base", "quantize", file_bytes=4_600_000)
    assert verdict(base(file_bytes=4_500_000), quantized) == [
        "`q` is no smaller on disk than `base`: 4.60 MB against 4.50 MB."
    ]
    exported = StepReport("o", "base", "onnx fp32", file_bytes=4_600_000)
    assert verdict(base(file_bytes=4_500_000), exported) == []


def test_exporting_a_quantized_model_need_not_shrink_it_again() -> None:
    quantized = StepReport("q", "base", "quantize", file_bytes=100)
    assert verdict(base(file_bytes=400), quantized, StepReport("o", "q", "onnx int8", file_bytes=101)) == []


def test_int8_is_held_against_the_float_export_on_the_same_runtime() -> None:
    steps = (
        base(latency_ms=30.0),
        StepReport("fp32", "base", "onnx fp32", "onnxruntime", latency_ms=10.0),
        StepReport("q", "base", "quantize"),
        StepReport("int8", "q", "onnx int8", "onnxruntime", latency_ms=13.0),
        StepReport("ov", "q", "openvino int8", "openvino", latency_ms=13.0),
    )
    assert verdict(*steps) == [
        "`int8` encodes 1.3x slower than `fp32` on onnxruntime: 13.0 ms against 10.0 ms.",
        # the end of the lineage, against the best form of its start
        "`ov` on openvino encodes 1.3x slower than `fp32` on onnxruntime: 13.0 ms against 10.0 ms.",
    ]


def test_a_parent_that_is_the_float_rival_is_named_once() -> None:
    fp32 = StepReport("fp32", None, "onnx fp32", "onnxruntime", latency_ms=10.0)
    assert len(verdict(fp32, StepReport("int8", "fp32", "onnx int8", "onnxruntime", latency_ms=13.0))) == 1


def test_nothing_is_said_of_what_was_not_measured() -> None:
    nan = float("nan")
    steps = [
        StepReport("a", "base", "quantize"),
        StepReport("b", "base", "quantize", latency_ms=nan, miou_box=nan, miou_point=0.1),
    ]
    assert verdict(base(latency_ms=1.0, miou_box=0.9, file_bytes=1), *steps) == []


def lineage(best_ms: float) -> Report:
    """A lineage that ends at 20 ms, whose first model takes 50 ms in one runtime and `best_ms` in another."""
    steps = (
        base(),
        StepReport("base-onnx", "base", "onnx fp32", "onnxruntime", latency_ms=50.0),
        StepReport("base-bf16", "base", "onnx fp32", "openvino-bf16", latency_ms=best_ms),
        StepReport("slim", "base", "compress", "torch", latency_ms=40.0),
        StepReport("slim-int8", "slim", "onnx int8", "onnxruntime", latency_ms=20.0),
    )
    return Report("t", "c", "r", {}, steps)


def test_the_end_of_a_lineage_is_held_against_the_best_form_of_its_first_model() -> None:
    assert gained(lineage(best_ms=30.0)) == (
        "Over the best that `base` does on this machine: `slim-int8` on onnxruntime encodes 1.5x faster than "
        "`base-bf16` on openvino-bf16, 20.0 ms against 30.0 ms."
    )
    assert did_not_pay(lineage(best_ms=30.0)) == []
    assert "2.0x slower than `base-bf16`" in str(gained(lineage(best_ms=10.0)))
    (named,) = did_not_pay(lineage(best_ms=10.0))
    assert named.startswith("`slim-int8` on onnxruntime encodes 2.0x slower than `base-bf16` on openvino-bf16")


def test_nothing_is_said_of_a_lineage_that_was_not_timed() -> None:
    untimed = StepReport("q", "base", "onnx int8", "onnxruntime")
    assert gained(Report("t", "c", "r", {}, (base(latency_ms=10.0), untimed))) is None
    assert gained(Report("t", "c", "r", {}, (base(latency_ms=10.0),))) is None
