"""The table of quantization, and the race of integer encoders, joined from all floors. Nothing here prints."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sam_edge.bench.encoder_turn import opened
from sam_edge.bench.integers import Contender, Turns, quantize_by_nncf, quantize_by_onnxruntime, race
from sam_edge.bench.quantization import Measured, QuantizationRow, Setting, compare_settings
from sam_edge.bench.repeats import LOG
from sam_edge.commands.common import OnProgress, sample_others, sample_pictures
from sam_edge.data import open_some
from sam_edge.data.split import Split
from sam_edge.errors import BenchError
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.export.parity import Answers, answers, compare
from sam_edge.export.to_onnx import OnnxOptions, as_exported, write_encoder
from sam_edge.models.checkpoint import save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.quantize.ptq import QuantizeOptions, Rounding, quantize_model
from sam_edge.quantize.scales import check_bits
from sam_edge.quantize.search import Metric
from sam_edge.quantize.task_loss import task_loss
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.known import WEIGHTS

COMPARED = 16
"""Pictures of each data set on which answers are compared with the float parent's: as many as are kept in memory."""


class _EncodesOnce(TorchRuntime):
    """Keeps what the encoder makes of the first pictures: in simulated integers each takes seconds."""

    def __init__(self, model: EdgeSam, device: str, kept: dict[bytes, Tensor], most: int) -> None:
        super().__init__(model, device)
        self._kept, self._most = kept, most

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embeddings, of a picture seen before the same tensor."""
        key = sha256(pixels.tobytes()).digest()
        found = self._kept.get(key)
        if found is None:
            found = super().encode(pixels)
            if len(self._kept) < self._most:
                self._kept[key] = found
        return found


def quantization_table(
    spec: str,
    images: str,
    data: Sequence[str],
    chosen: Sequence[Setting],
    seeds: Sequence[int],
    *,
    calibration_images: int = 8,
    split: Split = "val",
    limit: int | None = None,
    device: str = "auto",
    log: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Measured, list[QuantizationRow]]:
    """Quantize a MODEL in every chosen way, each seed with its own calibration pictures, and evaluate on `data`.

    The integers are simulated in torch. Scores are means over the data sets; `limit` draws so many pictures of each
    one's split, the same for all seeds. With `log` each run is kept there when it ends, and a table that was cut short
    goes on from it.

    Raises:
        BenchError: no seeds.
        SamEdgeError: `log` holds runs of another model, other pictures or other data.
        QuantizationError: bits out of range.
    """
    if not seeds:
        raise BenchError("a table needs at least one calibration seed: check --seeds.")
    for setting in chosen:
        check_bits(setting.bits, "weight and activation")
    place = resolve_device(device)
    datasets = [open_some(spec, split, limit=limit, seed=0) for spec in data]
    pictures = [sample.image for dataset in datasets for sample in islice(dataset, COMPARED)]
    parent = load_model(spec, place)
    wanted = answers(TorchRuntime(parent, place), pictures)

    def measured(model: EdgeSam) -> Measured:
        kept: dict[bytes, Tensor] = {}

        def runtime() -> TorchRuntime:
            return _EncodesOnce(model, place, kept, len(pictures))

        whole = answers(runtime(), pictures)
        scores = [evaluate_prompts(runtime(), dataset, [Asked("point"), Asked("box")]) for dataset in datasets]
        point, box = zip(*scores, strict=True)
        with tempfile.TemporaryDirectory() as scratch:
            saved = save_checkpoint(model, Path(scratch) / "model", half=model.config.quantization is not None)
            size = (saved / WEIGHTS).stat().st_size
        with as_exported(model, OnnxOptions("int8", twin=True, products="all")):
            exported = answers(runtime(), pictures)
        return Measured(
            miou_point=mean(found.miou for found in point),
            miou_box=mean(found.miou for found in box),
            agreement=compare(wanted, whole).mask_iou,
            agreement_float_decoder=compare(wanted, exported).mask_iou,
            loss=divergence(wanted, whole),
            loss_float_decoder=divergence(wanted, exported),
            file_bytes=size,
            totals={
                f"miou_{kind}": [found.totals for found in by_set] for kind, by_set in (("point", point), ("box", box))
            },
        )

    def measure(setting: Setting, seed: int) -> Measured:
        model = load_model(spec, place)
        options = QuantizeOptions(
            weights=setting.bits,
            activations=setting.bits,
            metric=cast(Metric, setting.metric),
            twin=setting.twin,
            rounding=cast(Rounding, setting.rounding),
            seed=seed,
        )
        quantize_model(model, sample_pictures(images, calibration_images, seed), options)
        return measured(model)

    shared = {
        "model": weights_sha256(parent),
        "images": images,
        "data": list(data),
        "calibration_images": calibration_images,
        "split": split,
        "limit": limit,
    }
    with tempfile.TemporaryDirectory() as scratch:
        kept = log or Path(scratch) / LOG
        return compare_settings(lambda: measured(parent), chosen, seeds, measure, kept, shared, on_progress)


def divergence(wanted: Sequence[Answers], got: Sequence[Answers]) -> float:
    """What `hessian` makes small, the task loss of answers, in nats: its mean over pictures and prompts."""
    pairs = zip(wanted, got, strict=True)
    return mean(
        float(task_loss(*map(torch.from_numpy, (b.logits, b.iou, a.logits, a.iou)))) / a.logits.shape[1]
        for a, b in pairs
    )


def encoder_race(
    parent: str,
    integers: str,
    images: str,
    *,
    runtimes: Sequence[str] = ("onnxruntime", "openvino"),
    pictures: int = 2,
    turns: int = 3,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Turns]:
    """Race the encoder of a quantized checkpoint against its float parent's, exported as each runtime likes them best,
    and opened as this CPU computes it rightly.

    In ONNX Runtime its own static (calibrated on `pictures`) and dynamic quantization of the parent take part; in
    OpenVINO bfloat16 does, alone and for the float rest of the integer graph, and NNCF's quantization, where that is
    installed. How far each one's masks are the float parent's is measured on `pictures` others.

    Raises:
        BenchError: `integers` is not a quantized checkpoint, `parent` is one, or OpenVINO is absent.
    """
    model = load_model(parent)
    side = model.config.image_size
    if model.config.quantization is not None or load_model(integers).config.quantization is None:
        raise BenchError("the race is between a float MODEL and a quantized one, in this order.")
    if "openvino" in runtimes and find_spec("openvino") is None:
        raise BenchError(
            "openvino is not installed: pip install 'sam-edge[openvino]', or choose --runtime onnxruntime."
        )
    inputs = [to_pixels(picture, model.config)[0] for picture in sample_pictures(images, pictures, seed)]
    with tempfile.TemporaryDirectory() as scratch:

        def write(name: str, spec: str, options: OnnxOptions) -> Path:
            folder = Path(scratch) / name
            folder.mkdir()
            write_encoder(load_model(spec), folder, options)
            return folder

        graph = write("float", parent, OnnxOptions())
        contenders = {}
        if "onnxruntime" in runtimes:
            own = quantize_by_onnxruntime(graph / "encoder.onnx", Path(scratch), inputs)
            contenders["onnxruntime float"] = Contender("onnxruntime", graph)
            contenders["onnxruntime int8"] = Contender("onnxruntime", write("ort", integers, OnnxOptions("int8")))
            contenders |= {f"onnxruntime {name}": Contender("onnxruntime", file) for name, file in own.items()}
        if "openvino" in runtimes:
            plain = write("openvino", integers, OnnxOptions("int8", products="none"))
            contenders["openvino float"] = Contender("openvino", graph)
            contenders["openvino bf16"] = Contender("openvino-bf16", graph)
            contenders["openvino int8"] = Contender("openvino", plain)
            contenders["openvino int8 and bf16"] = Contender("openvino-bf16", plain)
            if find_spec("nncf") is not None:
                nncf = quantize_by_nncf(graph / "encoder.onnx", Path(scratch), inputs)
                contenders["openvino nncf"] = Contender("openvino", nncf)
        found = race(contenders, side=side, threads=cpu_threads(), turns=turns, on_turn=on_progress)
        others = sample_others(images, pictures, seed, pictures)
        agree = {name: mask_agreement(model, contender, others) for name, contender in contenders.items()}
    return {name: replace(timed, agreement=agree[name]) for name, timed in found.items()}


class _Behind(TorchRuntime):
    """A model whose encoder is another's."""

    def __init__(self, model: EdgeSam, contender: Contender) -> None:
        super().__init__(model, "cpu")
        self._encoder = opened(contender.runtime, contender.file, cpu_threads())

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """The other's embeddings."""
        return torch.from_numpy(np.array(self._encoder(pixels)))


def mask_agreement(model: EdgeSam, contender: Contender, pictures: Sequence[np.ndarray]) -> float:
    """Mean IoU of a model's masks with those that its decoder gives behind a contender's encoder."""
    wanted = answers(TorchRuntime(model, "cpu"), pictures)
    return compare(wanted, answers(_Behind(model, contender), pictures)).mask_iou
