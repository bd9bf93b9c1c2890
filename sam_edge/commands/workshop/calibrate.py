"""`sam-edge calibrate`: everything mode's tau, and thresholds, chosen on photos without labels."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sam_edge.commands.common import OnProgress, counting, sample_pictures
from sam_edge.commands.workshop.lineage import add_step
from sam_edge.files import check_target
from sam_edge.models.checkpoint import holds_halves, save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.calibrate import CalibrateOptions, calibrate


def calibrate_everything(
    spec: str,
    images: str,
    out: Path,
    options: CalibrateOptions,
    *,
    photos: int = 16,
    seed: int = 0,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Choose tau on photos, and write a checkpoint folder of the same weights that has it."""
    check_target(out)
    pictures = sample_pictures(images, photos, seed, strict=strict)
    on_photo = counting(len(pictures), "photos", on_progress)
    found = calibrate(open_runtime(spec, "torch", device), pictures, options, on_photo=on_photo)
    # opened anew: opened as a runtime, a model's attention is rewritten
    model = load_model(spec)
    settings = {**asdict(options), "photos": len(pictures)}
    add_step(model, "calibrate", settings, seed, weights_sha256(model), [Path(images).name], parent=spec)
    model.config = model.config.replace(thresholds=found.thresholds)
    save_checkpoint(model, out, half=holds_halves(model))
    return {"out": str(out), **found.as_dict()}
