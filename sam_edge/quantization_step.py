"""The table of quantization, joined from all floors. Nothing here prints."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from sam_edge.bench.quantization import Measured, QuantizationRow, Setting, compare_settings
from sam_edge.data import open_some
from sam_edge.data.split import Split
from sam_edge.evaluate.miou import evaluate_miou
from sam_edge.export.parity import answers, compare
from sam_edge.export.runtimes import resolve_device
from sam_edge.models.checkpoint import WEIGHTS, save_checkpoint
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.quantize.search import Metric
from sam_edge.segment.runtime import TorchRuntime
from sam_edge.steps import OnProgress, sample_pictures

AGREEMENT_IMAGES = 4
"""Pictures on which masks are compared with the float parent's."""


def quantization_table(
    spec: str,
    images: str,
    data: str,
    chosen: Sequence[Setting],
    seeds: Sequence[int],
    *,
    calibration_images: int = 8,
    split: Split = "val",
    limit: int | None = None,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> tuple[Measured, list[QuantizationRow]]:
    """Quantize a MODEL in every chosen way, each seed with its own calibration pictures, and evaluate on `data`.

    The integers are simulated in torch. `limit` draws so many pictures of the split, the same for all seeds.
    """
    place = resolve_device(device)
    dataset = open_some(data, split, limit=limit, seed=0)
    pictures = sample_pictures(images, AGREEMENT_IMAGES, seed=-1)
    parent = load_model(spec, place)
    wanted = answers(TorchRuntime(parent, place), pictures)

    def measured(model: EdgeSam) -> Measured:
        runtime = TorchRuntime(model, place)
        point, box = (evaluate_miou(runtime, dataset, prompt=prompt).miou for prompt in ("point", "box"))
        with tempfile.TemporaryDirectory() as scratch:
            saved = save_checkpoint(model, Path(scratch) / "model", half=model.config.quantization is not None)
            size = (saved / WEIGHTS).stat().st_size
        return Measured(point, box, compare(wanted, answers(runtime, pictures)).mask_iou, size)

    def measure(setting: Setting, seed: int) -> Measured:
        model = load_model(spec, place)
        options = QuantizeOptions(
            weights=setting.bits,
            activations=setting.bits,
            metric=cast(Metric, setting.metric),
            twin=setting.twin,
            seed=seed,
        )
        quantize_model(model, sample_pictures(images, calibration_images, seed), options)
        return measured(model)

    float_scores = measured(parent)
    return float_scores, compare_settings(chosen, seeds, measure, on_progress)
