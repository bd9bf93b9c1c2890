"""The verbs of `sam_edge`: what the commands do, for programs.

Each returns what its command prints with `--json`, as a dictionary. A MODEL is what it is on the command line: a known
name, a checkpoint file or folder, an exported folder, `random:NAME` or `timm:NAME[=FILE]`. Pictures are a folder, or
`synthetic[:COUNT[:SEED]]`. `on_progress(done, total, text)` is called as work goes on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.runtime import Runtime

if TYPE_CHECKING:
    from sam_edge.compress.slimming import SlimOptions
    from sam_edge.compress.tinysam import TinySamOptions
    from sam_edge.export.to_onnx import OnnxOptions
    from sam_edge.quantize.ptq import QuantizeOptions

OnProgress = Callable[[int, int, str], None]
Device = Literal["auto", "cpu", "cuda"]
SYNTHETIC = "synthetic:64"
"""Pictures that always exist."""


def load(model: str | Path, runtime: str = "auto", device: Device = "auto") -> Runtime:
    """Open a MODEL, for `SamPredictor` and `EverythingGenerator`.

    Args:
        model: what to open.
        runtime: `auto`, `torch`, `onnxruntime`, `onnxruntime-NAME` for one of its execution providers, `openvino`,
            `openvino-bf16` or `tensorrt`. `auto` is torch for what holds weights and ONNX Runtime for an exported
            folder; where torch is absent, a known name that ships as graphs is those.
        device: `auto` takes a GPU where there is one.

    Raises:
        BackendUnavailableError: an unknown or absent runtime or device.
        ExportError: torch asked of an exported folder, or a checkpoint that does not export.
        CheckpointError, ModelError: no such model.
    """
    return open_runtime(model, runtime, device)


def compress(
    model: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    ratio: float = 0.5,
    student: str | None = None,
    epochs: int | None = None,
    batch_size: int = 4,
    learning_rate: float | None = None,
    seed: int = 0,
    options: "SlimOptions | TinySamOptions | None" = None,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Prune a MODEL and distil it back to accuracy (SlimSAM), or distil it into a student (TinySAM).

    Needs the workshop. Killed and called again with the same arguments, it continues.

    Args:
        model: the teacher, which is pruned unless there is a student.
        images: photos, without labels; labels beside them are used where there are any.
        out: checkpoint folder to write, whole or not at all.
        ratio: share of the encoder's channels to remove, in (0, 1); of no meaning with a student.
        student: a known name, a checkpoint, or `timm:NAME`; without it `model` itself is pruned.
        epochs: passes over the pictures; by default the paper's 40 (80 above a ratio of 0.5), 8 with a student.
        batch_size: pictures per step and process.
        learning_rate: of Adam; by default 1e-4, with a student 1e-3.
        seed: of everything random.
        options: all settings, in place of those above.
        device: where the model is trained.
        on_progress: called as work goes on.

    Raises:
        CompressionError, TrainingError: settings that cannot work. DataError: no pictures.
        BackendUnavailableError: the workshop, or the device, is not here.
    """
    from sam_edge.compress.distil import DistilOptions
    from sam_edge.compress.slimming import SlimOptions
    from sam_edge.compress.student import StudentOptions
    from sam_edge.compress.tinysam import TinySamOptions
    from sam_edge.compress.widths import PruneOptions

    if options is None and student is not None:
        options = TinySamOptions(
            StudentOptions(student),
            epochs=TinySamOptions.epochs if epochs is None else epochs,
            batch_size=batch_size,
            learning_rate=TinySamOptions.learning_rate if learning_rate is None else learning_rate,
            seed=seed,
        )
    elif options is None:
        rate = DistilOptions.learning_rate if learning_rate is None else learning_rate
        distil = DistilOptions(epochs=epochs, batch_size=batch_size, learning_rate=rate, seed=seed)
        options = SlimOptions(prune=PruneOptions(ratio, seed=seed), distil=distil)
    if isinstance(options, TinySamOptions):
        from sam_edge.commands.workshop.distil import DistilSources
        from sam_edge.commands.workshop.distil import distil as into_student

        return into_student(
            str(model), str(images), Path(out), options, DistilSources(), device=device, on_progress=on_progress
        )
    from sam_edge.commands.workshop.compress import compress as compress_

    return compress_(str(model), str(images), Path(out), options, device=device, on_progress=on_progress)


def quantize(
    model: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    weights: int = 8,
    activations: int = 8,
    calibration_images: int = 8,
    max_drop: float | None = None,
    gate_data: str | Path | None = None,
    seed: int = 0,
    options: "QuantizeOptions | None" = None,
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Turn a float MODEL into an integer one after training, with a few photos for calibration (TinySAM, 3.3).

    Needs the workshop.

    Args:
        model: a float checkpoint.
        images: photos, without labels.
        out: checkpoint folder to write, whole or not at all.
        weights: bits of the weights, 2 to 8.
        activations: bits of the activations, 2 to 8.
        calibration_images: pictures that scales are searched on.
        max_drop: largest drop allowed, in mIoU on `gate_data` or, without it, in agreement with the float model's
            masks; for it the most sensitive layers go back to 8 bits or to float.
        gate_data: labelled pictures for `max_drop`.
        seed: of the pictures and of everything random.
        options: all settings of the search, in place of `weights`, `activations` and `seed`.
        device: where the model runs.
        on_progress: called as work goes on.

    Raises:
        QuantizationError: settings that cannot work, or a drop that cannot be held.
        BackendUnavailableError: the workshop, or the device, is not here.
    """
    from sam_edge.commands.workshop.quantize import quantize as quantize_
    from sam_edge.quantize.ptq import QuantizeOptions

    return quantize_(
        str(model),
        str(images),
        Path(out),
        options or QuantizeOptions(weights, activations, seed=seed),
        calibration_images=calibration_images,
        max_drop=max_drop,
        gate_data=None if gate_data is None else str(gate_data),
        device=device,
        on_progress=on_progress,
    )


def export(
    model: str | Path,
    out: str | Path,
    *,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    layout: str = "sam-edge",
    images: str | Path = SYNTHETIC,
    seed: int = 0,
    options: "OnnxOptions | None" = None,
    device: Device = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Write a MODEL's encoder and decoder as ONNX, proven against torch on pictures, or not written.

    Needs the workshop.

    Args:
        model: a checkpoint; for another tool's layout an exported folder will do.
        out: exported folder to write, whole or not at all.
        precision: `int8` of a quantized checkpoint, `fp32` or `fp16` of a float one.
        layout: whose files: `sam-edge`, or a tool's, as `sam-edge export-onnx --help` lists them.
        images: pictures that agreement is measured on.
        seed: of their choice.
        options: all settings, in place of `precision`.
        device: where torch runs.
        on_progress: called as work goes on.

    Raises:
        ExportError: a graph that disagrees with torch, or a precision that the model does not have.
        BackendUnavailableError: the workshop is not here.
    """
    from sam_edge.commands.workshop.export import to_onnx
    from sam_edge.export.to_onnx import OnnxOptions

    chosen = options or OnnxOptions(precision)
    return to_onnx(
        str(model), str(images), Path(out), chosen, layout=layout, seed=seed, device=device, on_progress=on_progress
    )


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    prompt: Literal["point", "box"] = "box",
    multimask: bool = False,
    clicks: int | None = None,
    split: Literal["train", "val", "all"] = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: Device = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Mean IoU of a MODEL on labelled pictures, by one point or box per mask, or after each of several clicks.

    Args:
        model: what to evaluate.
        data: a folder in SA-1B's layout, tars of it, COCO instances json, or `synthetic`.
        prompt: what each mask is prompted with.
        multimask: take the best of three masks by predicted IoU.
        clicks: instead of `prompt`: so many clicks, each where the mask is most wrong.
        split: part of the data, by the hash of the file name.
        limit: evaluate on so many pictures, drawn by `seed`.
        seed: of their choice.
        runtime: see `load`; `auto` has a quantized checkpoint exported first.
        device: see `load`.
        on_progress: called as work goes on.

    Raises:
        DataError: no such pictures. Whatever `load` raises.
    """
    from sam_edge.commands.device.evaluate import Pictures, Run
    from sam_edge.commands.device.evaluate import evaluate as evaluate_

    pictures = Pictures(str(data), split, limit, seed)
    run = Run(runtime, device, on_progress=on_progress)
    return evaluate_(str(model), pictures, run, prompt=prompt, multimask=multimask, clicks=clicks)
