"""`sam-edge train`: a SAM trained or fine-tuned on labelled pictures."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from sam_edge.models.checkpoint import weights_sha256
from sam_edge.models.sam import EdgeSam
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.loop import LoopOptions, Progress, Validate, fit
from sam_edge.training.stream import Source, ViewBatch, ViewStream, stack_views, step_batches
from sam_edge.training.views import ViewOptions


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training run."""

    loop: LoopOptions
    """Optimizer and schedule."""
    batch_size: int = 8
    """Views per batch."""
    workers: int = 1
    """Processes that read and crop; 0 does it in the training process."""
    seed: int = 0
    """Seed of the data order, the crops and the prompts."""
    prompting: InteractiveOptions = field(default_factory=InteractiveOptions)
    """How prompts are drawn."""
    prompts: int = 16
    """Prompted masks per view."""
    max_zoom: float = 3.0
    """Largest magnification of a view."""
    whole: float = 0.3
    """Share of views that show the whole picture."""


def train(
    model: EdgeSam,
    sources: Sequence[Source],
    options: TrainOptions,
    *,
    state_file: Path | None = None,
    validate: Validate | None = None,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress:
    """Train every weight of `model` in place and append the step to its lineage.

    Raises:
        TrainingError: the loss diverged, or `state_file` belongs to another run.
        DataError: no usable mask in the sources.
    """
    views = ViewOptions(
        image_size=model.config.image_size,
        mask_size=model.config.mask_size,
        prompts=options.prompts,
        max_zoom=options.max_zoom,
        whole=options.whole,
        padding=model.config.pixel_mean,
    )
    stream = ViewStream(sources, views, options.seed)

    def batches(first: int, last: int) -> Iterable[ViewBatch]:
        return step_batches(stream, options.batch_size, first, last, workers=options.workers, collate=stack_views)

    data = [{"name": _name(source), "images": len(source.dataset), "weight": source.weight} for source in sources]
    settings = asdict(options)
    parent = weights_sha256(model) if model.config.lineage else None
    model.requires_grad_(True)
    progress = fit(
        model,
        InteractiveSegmentation(model, options.prompting, options.seed),
        batches,
        options.loop,
        state_file=state_file,
        identity=json.dumps([settings, data, model.config.image_size], sort_keys=True),
        validate=validate,
        on_step=on_step,
    )
    model.config = model.config.with_step(
        {
            "step": "train",
            "settings": settings,
            "seed": options.seed,
            "parent_sha256": parent,
            "data": data,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(progress.seconds),
            "hardware": f"{torch.get_num_threads()} CPU threads"
            if next(model.parameters()).device.type == "cpu"
            else torch.cuda.get_device_name(),
        }
    )
    return progress


def _name(source: Source) -> str:
    root = getattr(source.dataset, "root", None)
    return Path(root).name if root is not None else type(source.dataset).__name__
