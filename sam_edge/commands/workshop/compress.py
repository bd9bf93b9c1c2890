"""`sam-edge compress --method slimsam`: a model pruned and distilled in stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from sam_edge.commands.common import OnProgress
from sam_edge.commands.workshop.lineage import add_step, sizes
from sam_edge.compress.labels import LabelledLoss
from sam_edge.compress.slimming import Slimming, SlimOptions
from sam_edge.data import open_images, open_labelled
from sam_edge.data.sample import LabelledDataset
from sam_edge.data.split import is_val
from sam_edge.data.unreadable import Noted, unreadable_files
from sam_edge.errors import DataError
from sam_edge.evaluate.miou import evaluate_miou
from sam_edge.files import check_target
from sam_edge.models.checkpoint import save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.training.processes import joined_processes, rank

VALIDATION_IMAGES = 16
"""Labelled pictures that a compression validates on after each epoch."""


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
    with joined_processes(device), unreadable_files(strict) as unreadable:
        model = load_model(spec, device)
        pictures = Noted(open_images(images, strict), unreadable)
        labelled = _with_labels(images, strict)
        parent, before = weights_sha256(model), model.config
        slimming = Slimming(
            model,
            pictures,
            options,
            out.absolute().with_name(f"{out.name}.stages"),
            label_loss=None if labelled is None else LabelledLoss(Noted(labelled, unreadable)),
            validate=None if labelled is None else _validation_miou(labelled),
            on_progress=on_progress,
        )
        model = slimming.run()
        settings = {**options.as_dict(), "stages": slimming.records}
        add_step(model, "compress", settings, options.prune.seed, parent, [Path(images).name], parent=spec)
        if rank() == 0:
            save_checkpoint(model, out)
        return {
            "out": str(out),
            **sizes(model.config, before),
            **slimming.closeness(),
            "validation": "mIoU by one point" if labelled else "embedding error",
            "stages": slimming.records,
            "steps": sum(record.get("steps", 0) for record in slimming.records),
            "seconds": sum(record.get("seconds", 0.0) for record in slimming.records),
            "unreadable": unreadable.found,
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
