"""What each command does, joined from all floors: a MODEL in, files and a plain dict of results out.

Nothing here prints. `on_progress(done, total, text)` is called along the way by whatever takes long.
"""

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import nn

from sam_edge.bench.latency import MEASUREMENTS, bench_runtimes
from sam_edge.bench.memory import file_bytes, peak_bytes
from sam_edge.bench.table import BenchRow
from sam_edge.compress.labels import LabelledLoss
from sam_edge.compress.slimming import Slimming, SlimOptions
from sam_edge.data import open_images, open_labelled, open_some
from sam_edge.data.sample import LabelledDataset
from sam_edge.data.split import Split, is_val
from sam_edge.data.synthetic import SceneOptions, render_scene
from sam_edge.errors import DataError
from sam_edge.evaluate.clicks import evaluate_clicks
from sam_edge.evaluate.miou import PromptKind, evaluate_miou
from sam_edge.export.onnx_runtime import ExportedFolder, is_exported_folder
from sam_edge.export.parity import answers, compare
from sam_edge.export.runtimes import open_runtime, resolve_device
from sam_edge.export.tensorrt_runtime import load_library
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, resolve_targets
from sam_edge.files import check_target
from sam_edge.models.checkpoint import save_checkpoint, weights_sha256
from sam_edge.models.cost import cost
from sam_edge.models.known import KNOWN
from sam_edge.models.registry import load_model, packaged_folder
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.gate import hold_drop
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.segment.runtime import Runtime, TorchRuntime
from sam_edge.training.processes import joined_processes, rank

OnProgress = Callable[[int, int, str], None]
Picture = UInt8[np.ndarray, "h w 3"]

VALIDATION_IMAGES = 16
"""Labelled pictures that a compression validates on after each epoch."""


def models() -> list[dict[str, Any]]:
    """Known names with size, cost, source and licence."""
    return [
        {
            "name": known.name,
            "summary": known.summary,
            **asdict(cost(known.config)),
            "source": known.source,
            "licence": known.licence,
        }
        for known in KNOWN.values()
    ]


def compress(
    spec: str,
    images: str,
    out: Path,
    options: SlimOptions,
    *,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Prune and distil, and write a checkpoint folder. A killed run continues from the stages beside `out`.

    Under torchrun all processes share the pictures, and the first writes.
    """
    check_target(out.absolute())
    device = resolve_device(device)
    with joined_processes(device):
        model = load_model(spec, device)
        pictures = open_images(images, strict)
        labelled = _with_labels(images, strict)
        parent, before = weights_sha256(model), cost(model.config)
        slimming = Slimming(
            model,
            pictures,
            options,
            out.absolute().with_name(f"{out.name}.stages"),
            label_loss=None if labelled is None else LabelledLoss(labelled),
            validate=None if labelled is None else _validation_miou(labelled),
            on_progress=on_progress,
        )
        model = slimming.run()
        settings = {**options.as_dict(), "stages": slimming.records}
        _add_step(model, "compress", settings, options.prune.seed, parent, [images])
        if rank() == 0:
            save_checkpoint(model, out)
        after = cost(model.config)
        return {
            "out": str(out),
            "parameters": after.parameters,
            "encoder_macs": after.encoder_macs,
            "encoder_macs_with_attention": after.encoder_macs_with_attention,
            "parent": asdict(before),
            **slimming.closeness(),
            "validation": "mIoU by one point" if labelled else "embedding error",
            "stages": slimming.records,
            "steps": sum(record.get("steps", 0) for record in slimming.records),
            "seconds": sum(record.get("seconds", 0.0) for record in slimming.records),
        }


def _with_labels(images: str, strict: bool) -> LabelledDataset | None:
    """The same pictures with their masks, where there are any to train importance and to validate on."""
    try:
        labelled = open_labelled(images, "all", strict)
    except DataError:
        return None
    return labelled if any(is_val(name) for name in labelled.names) else None


def _validation_miou(labelled: LabelledDataset) -> Callable[[nn.Module], float]:
    """Mean IoU by one point on the first few pictures of the val split."""
    indices = [index for index, name in enumerate(labelled.names) if is_val(name)][:VALIDATION_IMAGES]

    def validate(model: nn.Module) -> float:
        assert isinstance(model, EdgeSam)
        return evaluate_miou(TorchRuntime(model, str(model.device)), labelled.subset(indices)).miou

    return validate


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
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Quantize after training, and write a quantized checkpoint folder.

    With `max_drop` layers go back to higher precision until mIoU on `gate_data` (by point and by box), or without it
    the agreement with the float model's masks, falls no further. With `runtime` the result is exported and timed
    against its float parent there.
    """
    place = resolve_device(device)
    model = load_model(spec, place)
    parent = weights_sha256(model)
    pictures = sample_pictures(images, calibration_images, options.seed, strict=strict)
    gate, score = None, 0.0
    if max_drop is not None:
        validate = _agreement(model, images, gate_images, options.seed)
        if gate_data is not None:
            validate = _labelled_score(gate_data, gate_images, options.seed, strict=strict)
        score = validate(model)
    quantizer = quantize_model(model, pictures, options, on_progress)
    if max_drop is not None:
        gate = hold_drop(quantizer, max_drop, validate, score, on_progress)
    settings = {**asdict(options), "calibration_images": len(pictures), "max_drop": max_drop}
    _add_step(model, "quantize", settings, options.seed, parent, [images, *([gate_data] if gate_data else [])])
    save_checkpoint(model, out, half=True)
    return {
        "out": str(out),
        "layers": len(model.config.quantization or {}),
        "calibration_images": len(pictures),
        "file_bytes": file_bytes(out),
        "gate": None if gate is None else {"measure": gate_data or "agreement with the float model", **asdict(gate)},
        "speed": None if runtime is None else _compared_speed(spec, str(out), runtime, pictures[0], device),
    }


def _agreement(model: EdgeSam, images: str, count: int, seed: int) -> Callable[[EdgeSam], float]:
    """Mean mask IoU with what `model` says now, by a fixed set of points and boxes on pictures not calibrated on."""
    pictures = sample_pictures(images, count, seed + 1)
    wanted = answers(TorchRuntime(model), pictures)
    return lambda other: compare(wanted, answers(TorchRuntime(other), pictures)).mask_iou


def _labelled_score(data: str, count: int, seed: int, *, strict: bool) -> Callable[[EdgeSam], float]:
    """Mean of point and box mIoU on labelled pictures of the train split."""
    dataset = open_some(data, "train", strict, limit=count, seed=seed)
    prompts: tuple[PromptKind, ...] = ("point", "box")

    def score(model: EdgeSam) -> float:
        runtime = TorchRuntime(model)
        return sum(evaluate_miou(runtime, dataset, prompt=prompt).miou for prompt in prompts) / len(prompts)

    return score


def _compared_speed(spec: str, quantized: str, runtime: str, picture: Picture, device: str) -> dict[str, Any]:
    """Median encoder latency of a quantized model and of its float parent on one runtime, taking turns."""
    opened = [open_runtime(model, runtime, device) for model in (spec, quantized)]
    parent, integer = (latency["encode"].median_ms for latency in bench_runtimes(opened, picture, warmup=1, runs=5))
    return {"runtime": runtime, "float_ms": parent, "quantized_ms": integer, "faster": integer < parent}


def to_onnx(
    spec: str, images: str, out: Path, options: OnnxOptions, *, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Export to ONNX, with parity on real pictures, and write an exported folder."""
    model = load_model(spec, resolve_device(device))
    _, parity = export_onnx(model, out, sample_pictures(images, 2, seed), options)
    sizes = {file.name: file.stat().st_size for file in sorted(out.glob("*.onnx"))}
    return {"out": str(out), "precision": options.precision, "parity": parity.as_dict(), "file_bytes": sizes}


def to_engines(
    spec: str, images: str, out: Path, onnx: OnnxOptions, trt: TrtOptions, *, seed: int = 0, device: str = "auto"
) -> dict[str, Any]:
    """Build engines of an exported folder, or of a checkpoint that is exported on the way."""
    # a target that cannot be built is known before a long export, not after it
    resolve_targets(load_library(trt.flavor), trt)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(spec)
        if not is_exported_folder(folder):
            folder = Path(scratch) / "onnx"
            to_onnx(spec, images, folder, onnx, seed=seed, device=device)
        engines = build_engines(ExportedFolder.read(folder), out, trt)
    return {"out": str(out), "engines": [asdict(engine) for engine in engines]}


def evaluate(
    spec: str,
    data: str,
    *,
    prompt: PromptKind = "box",
    multimask: bool = False,
    clicks: int | None = None,
    split: Split = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Mean IoU of a MODEL on labelled data, by `prompt` or after each of `clicks`; `limit` draws so many pictures."""
    opened = open_runtime(spec, runtime, device)
    dataset = open_some(data, split, strict, limit=limit, seed=seed)
    done = 0

    def on_image() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, len(dataset), f"{prompt} mIoU")

    common = {"model": spec, "runtime": opened.name, "data": data, "split": split}
    if clicks is not None:
        return {
            **common,
            "clicks": clicks,
            **evaluate_clicks(opened, dataset, clicks=clicks, on_image=on_image).as_dict(),
        }
    result = evaluate_miou(opened, dataset, prompt=prompt, multimask=multimask, on_image=on_image)
    return {**common, **result.as_dict()}


def bench(
    specs: Sequence[str],
    runtimes: Sequence[str],
    *,
    image: Picture | None = None,
    memory: bool = True,
    warmup: int = 2,
    runs: int = 10,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> list[BenchRow]:
    """Latency of every model on every runtime, taking turns; memory of a fresh process each; sizes and MACs."""
    picture = render_scene(seed, SceneOptions(size=512)).image if image is None else image
    wanted = [(spec, runtime) for spec in specs for runtime in runtimes or ("auto",)]
    opened = [open_runtime(spec, runtime, device) for spec, runtime in wanted]
    done, total = 0, len(MEASUREMENTS) * (warmup + runs) * len(opened)

    def on_run() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total, "timing")

    latencies = bench_runtimes(opened, picture, warmup=warmup, runs=runs, on_run=on_run)
    rows = []
    for (spec, _), runtime, latency in zip(wanted, opened, latencies, strict=True):
        counted = cost(runtime.config.replace(quantization=None))
        rows.append(
            BenchRow(
                model=spec,
                runtime=runtime.name,
                precision=precision_of(runtime),
                parameters=counted.parameters,
                encoder_macs=counted.encoder_macs,
                encoder_macs_with_attention=counted.encoder_macs_with_attention,
                file_bytes=size_of(spec, runtime),
                peak_bytes=_peak(spec, runtime.name, picture, device) if memory else None,
                latencies=latency,
            )
        )
    return rows


def precision_of(runtime: Runtime) -> str:
    """fp32, fp16 or int8; a quantized checkpoint in torch is simulated, and says so."""
    folder = getattr(runtime, "folder", None)
    if isinstance(folder, ExportedFolder):
        return folder.precision
    return "fp32" if runtime.config.quantization is None else "int8 simulated"


def size_of(spec: str, runtime: Runtime) -> int | None:
    """Bytes on disk of what the runtime ran, or of the checkpoint; None for weights that have no file."""
    folder = getattr(runtime, "folder", None)
    if isinstance(folder, ExportedFolder):
        return file_bytes(folder.path, pattern="*.engine" if runtime.name == "tensorrt" else "*.onnx*")
    if Path(spec).exists():
        return file_bytes(Path(spec))
    if spec == "nano":
        return file_bytes(packaged_folder("nano"))
    return None


def _peak(spec: str, runtime: str, picture: Picture, device: str) -> int:
    """Peak memory of a process that opens the model and segments one picture by one point."""
    height, width = picture.shape[:2]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture.png"
        Image.fromarray(picture).save(file)
        point = f"{width // 2},{height // 2}"
        command = [sys.executable, "-m", "sam_edge", "segment", spec, str(file), "--point", point, "--runtime", runtime]
        return peak_bytes([*command, "--device", device, "--out", str(Path(scratch) / "masks")], timeout_s=600)


def sample_pictures(images: str, count: int, seed: int, *, strict: bool = False) -> list[Picture]:
    """`count` pictures drawn by `seed` from the train split of `images`, or from all where there is no such split."""
    pictures = open_images(images, strict)
    indices = [index for index, name in enumerate(pictures.names) if not is_val(name)] or list(range(len(pictures)))
    chosen = random.Random(seed).sample(indices, min(count, len(indices)))
    return [image for _, image in pictures.subset(chosen)]


def _add_step(
    model: EdgeSam, step: str, settings: dict[str, Any], seed: int, parent_sha256: str, data: Sequence[str]
) -> None:
    model.config = model.config.with_step(
        {
            "step": step,
            "settings": settings,
            "seed": seed,
            "parent_sha256": parent_sha256,
            "data": list(data),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
