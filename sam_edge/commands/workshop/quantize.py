"""`sam-edge quantize`: a quantized checkpoint, held to an accuracy gate and timed against its float parent."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from sam_edge.bench.latency import measure_in_turn, runtime_calls, synchroniser
from sam_edge.bench.memory import file_bytes
from sam_edge.commands.common import OnProgress, Picture, sample_others, sample_pictures
from sam_edge.commands.workshop.lineage import add_step
from sam_edge.data import open_some
from sam_edge.errors import BenchError
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.export.parity import answers, shown_agreement
from sam_edge.export.to_onnx import OnnxOptions, as_exported
from sam_edge.files import check_target
from sam_edge.models.checkpoint import save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.quantize.gate import check_gate, hold_drop
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.quantize.sensitivity import sensitivity
from sam_edge.runtimes.open import open_runtime
from sam_edge.runtimes.openvino_runtime import float_runtimes

Validate = Callable[[EdgeSam], float]


def quantize(
    spec: str,
    images: str,
    out: Path,
    options: QuantizeOptions,
    *,
    calibration_images: int = 8,
    max_drop: float | None = None,
    gate_data: str | None = None,
    gate_images: int = 16,
    runtime: str | None = None,
    ranked: bool = False,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Quantize after training, and write a quantized checkpoint folder.

    With `max_drop` layers go back to higher precision until the model as `export-onnx` writes it falls no further:
    in mIoU on `gate_data` (by point and by box), or without it in agreement with the float model's masks. With
    `runtime` the result is exported and timed against its float parent there. With `ranked` its `sensitivities` say
    what each layer's rounding adds to the task loss, in nats per picture, where the metric gives gradients.

    Raises:
        QuantizationError: a gate that could not work, or that leaves no layer quantized; nothing is written.
        BenchError: a runtime on which integers are only simulated.
    """
    check_target(out)
    place = resolve_device(device)
    if max_drop is not None:
        check_gate(max_drop, options)
    if runtime is not None:
        if runtime in ("auto", "torch"):
            raise BenchError("torch only simulates integers, so there is nothing to time: use --runtime onnxruntime.")
        # what is not installed says so now, not after the calibration
        open_runtime(spec, runtime, device)
    model = load_model(spec, place)
    parent = weights_sha256(model)
    pictures = sample_pictures(images, calibration_images, options.seed, strict=strict)
    gate, score, measure = None, 0.0, gate_data or "agreement with the float model"
    if max_drop is not None:
        if gate_data is not None:
            validate = _labelled_score(gate_data, gate_images, options.seed, place, strict=strict)
        else:
            others = sample_others(images, gate_images, options.seed, calibration_images, strict=strict)
            validate = _agreement(model, others, place)
        score = validate(model)
    quantizer = quantize_model(model, pictures, options, on_progress)
    ranks = ranked and options.metric == "hessian" and options.curvature == "fisher"
    sensitivities = {name: sensitivity(quantizer, name) for name in quantizer.layers if ranks}
    if max_drop is not None:
        gate = {"measure": measure, **asdict(hold_drop(quantizer, max_drop, validate, score, on_progress))}
    settings = {**asdict(options), "calibration_images": len(pictures), "max_drop": max_drop}
    result = None if gate is None else {"gate": gate}
    sources = [Path(source).name for source in (images, gate_data) if source]
    add_step(model, "quantize", settings, options.seed, parent, sources, result, spec)
    save_checkpoint(model, out, half=True)
    return {
        "out": str(out),
        "layers": len(model.config.quantization or {}),
        "calibration_images": len(pictures),
        "file_bytes": file_bytes(out),
        "gate": gate,
        **({"sensitivities": sensitivities} if ranked else {}),
        "speed": None if runtime is None else _compared_speed(spec, str(out), runtime, pictures[0], device),
    }


def _agreement(model: EdgeSam, pictures: list[Picture], place: str) -> Validate:
    """Agreement with the masks that `model` shows now, for a fixed set of points and boxes."""
    wanted = answers(TorchRuntime(model, place), pictures)

    def score(other: EdgeSam) -> float:
        with as_exported(other, OnnxOptions("int8")):
            return shown_agreement(wanted, answers(TorchRuntime(other, place), pictures))

    return score


def _labelled_score(data: str, count: int, seed: int, place: str, *, strict: bool) -> Validate:
    """Mean of point and box mIoU on labelled pictures of the train split."""
    dataset = open_some(data, "train", strict, limit=count, seed=seed)
    asked = Asked("point"), Asked("box")

    def score(model: EdgeSam) -> float:
        with as_exported(model, OnnxOptions("int8")):
            return fmean(result.miou for result in evaluate_prompts(TorchRuntime(model, place), dataset, asked))

    return score


def _compared_speed(spec: str, quantized: str, runtime: str, picture: Picture, device: str) -> dict[str, Any]:
    """Median encoder latency of a quantized model and of its float parent, taking turns: on the same runtime, and on
    each other that this machine's CPU runs float models by, of which the fastest is what integers have to beat."""
    forms = list(dict.fromkeys([runtime, *float_runtimes()]))
    opened = [open_runtime(quantized, runtime, device)]
    opened += [open_runtime(spec, form, device if form == runtime else "cpu") for form in forms]
    calls = {str(number): runtime_calls(one, picture)["encode"] for number, one in enumerate(opened)}
    waits = {str(number): wait for number, one in enumerate(opened) if (wait := synchroniser(one)) is not None}
    timed = measure_in_turn(calls, warmup=1, runs=5, synchronise=waits)
    integer, *found = (latency.median_ms for latency in timed.values())
    parents = dict(zip(forms, found, strict=True))
    best = min(parents, key=lambda form: parents[form])
    return {
        "runtime": runtime,
        "float_ms": parents[runtime],
        "quantized_ms": integer,
        "faster": integer < parents[runtime],
        "parents_ms": parents,
        "best_parent": best,
        "gain": parents[best] / integer,
    }
