"""`sam-edge train`: a SAM trained or fine-tuned on labelled pictures."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import torch

from sam_edge.data.shards import TarShards
from sam_edge.data.unreadable import Unreadable
from sam_edge.errors import TrainingError
from sam_edge.models.checkpoint import weights_sha256
from sam_edge.models.sam import EdgeSam
from sam_edge.training.features import FeatureLoss, FeatureOptions
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.loop import LoopOptions, Progress, Validate, fit
from sam_edge.training.processes import world
from sam_edge.training.stream import Source, ViewBatch, ViewStream, stack_views, step_batches
from sam_edge.training.views import SMALLEST_ELLIPSE, ViewOptions


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training run."""

    loop: LoopOptions
    """Optimizer and schedule."""
    batch_size: int = 8
    """Views per batch, in each process."""
    workers: int = 1
    """Processes that read and crop; 0 does it in the training process."""
    seed: int = 0
    """Seed of the data order, the crops and the prompts."""
    prompting: InteractiveOptions = field(default_factory=InteractiveOptions)
    """How prompts are drawn."""
    prompts: int = 16
    """Prompted masks per view."""
    window: int = 0
    """Side of the views in pixels, where they are windows at random places of the model's canvas: half a side is a
    quarter of the work. 0: views are as large as the model's image."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of parameters that stay as they are: `image_encoder.*` trains prompts and decoder alone."""
    min_zoom: float = 1.0
    """Smallest magnification of a view."""
    max_zoom: float = 3.0
    """Largest magnification of a view."""
    nothing: float = 0.0
    """Share of prompts that are points on nothing labelled: masks learn nothing from them, the predicted IoU that
    nothing there is a thing. Everything mode asks such points, and is to find nothing by them."""
    min_cells: int = 12
    """Smallest visible area of a prompted mask, in cells of the decoder's logits."""
    target_scale: int = 1
    """Targets are so many times finer than the decoder's logits, which are brought to their size before the loss. A
    patch has four cells of logits to a side: of patches of 8 pixels 2 gives the view's own pixels, of 16 4."""
    small_first: float = 0.0
    """Masks are drawn by the area of their box to the power of minus this: 0 draws all alike, 0.5 draws a thing of half
    the side twice as often."""
    whole: float = 0.3
    """Share of views that show the whole picture."""
    ellipses: float = 0.0
    """Share of views whose targets are random ellipses instead of things: teaches a new decoder what a box is."""
    largest_ellipse: float = 0.0
    """Side in pixels of a square as large as the largest box that an ellipse is asked for by; 0: the view's own. Small
    things are hardly more than ellipses to a small model, which then guesses less at what it cannot see."""
    colour: float = 0.2
    """Largest relative change of brightness, contrast and saturation, and largest turn of the hue in radians."""
    degrade: float = 0.0
    """Chance of each of: view made grey, blurred, noisy."""
    copy_paste: float = 0.0
    """Share of views into which a few things of another picture of the same source are pasted."""
    features: FeatureOptions | None = None
    """A pretrained image classifier's features, to be learned beside the labels."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.prompts < 1:
            raise TrainingError(f"batch_size and prompts must be at least 1, got {self.batch_size} and {self.prompts}.")
        if self.workers < 0 or not 0 <= self.seed < 1 << 30:
            raise TrainingError(
                f"workers cannot be negative, and seed is below 2^30, got {self.workers} and {self.seed}."
            )
        if self.features is not None and "image_encoder.*" in self.freeze:
            raise TrainingError("features are the encoder's to learn: leave out either them or --freeze.")
        if not 1 <= self.target_scale <= 8:
            raise TrainingError(f"target_scale must be between 1 and 8, got {self.target_scale}.")
        if not 0 <= self.small_first <= 2:
            raise TrainingError(f"small_first must be in [0, 2], got {self.small_first}.")
        if self.largest_ellipse and self.largest_ellipse < SMALLEST_ELLIPSE:
            raise TrainingError(f"largest_ellipse must be at least {SMALLEST_ELLIPSE:g}, got {self.largest_ellipse}.")
        if not 0 < self.min_zoom <= self.max_zoom:
            raise TrainingError(f"need 0 < min_zoom <= max_zoom, got {self.min_zoom} and {self.max_zoom}.")
        for name in ("whole", "colour", "degrade", "copy_paste", "ellipses", "nothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must be in [0, 1], got {getattr(self, name)}.")


def train(
    model: EdgeSam,
    sources: Sequence[Source],
    options: TrainOptions,
    *,
    method: InteractiveSegmentation | None = None,
    unreadable: Unreadable | None = None,
    state_file: Path | None = None,
    validate: Validate | None = None,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress:
    """Train the weights of `model` in place and append the step to its lineage.

    Args:
        method: a subclass's, where more than the labels is learned; its `settings` go into the lineage.
        unreadable: where broken pictures and annotations are noted; they are passed over.

    Raises:
        TrainingError: the loss diverged, or `state_file` belongs to another run.
        ModelError: no window of that size.
        DataError: no usable mask in the sources.
    """
    method = method or InteractiveSegmentation(model, options.prompting, options.seed, options.window)
    method.features = FeatureLoss(options.features) if options.features else None
    size = options.window or model.config.image_size
    views = ViewOptions(
        image_size=size,
        mask_size=model.config.mask_size * size // model.config.image_size * options.target_scale,
        prompts=options.prompts,
        min_zoom=options.min_zoom,
        max_zoom=options.max_zoom,
        min_cells=options.min_cells * options.target_scale**2,
        small_first=options.small_first,
        whole=options.whole,
        ellipses=options.ellipses,
        largest_ellipse=options.largest_ellipse,
        nothing=options.nothing,
        colour=options.colour,
        degrade=options.degrade,
        copy_paste=options.copy_paste,
        padding=model.config.pixel_mean,
    )
    stream = ViewStream(sources, views, options.seed, unreadable)

    def batches(first: int, last: int) -> Iterable[ViewBatch]:
        return step_batches(stream, options.batch_size, first, last, workers=options.workers, collate=stack_views)

    data = [_description(source) for source in sources]
    settings = asdict(options) | {"processes": world()} | method.settings
    settings["features"] = method.features.settings if method.features else None
    start = weights_sha256(model)
    # how fast the same examples arrive is no part of what the run is
    run = {name: value for name, value in settings.items() if name not in ("workers", "loop")}
    with method.features.beside(model) if method.features else nullcontext():
        _freeze(model, options.freeze)
        progress = fit(
            model,
            method,
            batches,
            options.loop,
            state_file=state_file,
            identity=json.dumps([run, data, start], sort_keys=True),
            validate=validate,
            on_step=on_step,
        )
    model.config = model.config.with_step(
        {
            "step": "train",
            "settings": settings,
            "seed": options.seed,
            "parent_sha256": start if model.config.lineage else None,
            "data": data,
            "seconds": round(progress.seconds),
            "hardware": f"{torch.get_num_threads()} CPU threads"
            if next(model.parameters()).device.type == "cpu"
            else torch.cuda.get_device_name(),
        }
    )
    return progress


def _freeze(model: EdgeSam, patterns: Sequence[str]) -> None:
    """Mark what is trained: every parameter that no pattern is the name of."""
    model.requires_grad_(True)
    for pattern in patterns:
        matching = [parameter for name, parameter in model.named_parameters() if fnmatch(name, pattern)]
        if not matching:
            raise TrainingError(f"no parameter is called {pattern}: see the names in the checkpoint.")
        for parameter in matching:
            parameter.requires_grad_(False)


def _description(source: Source) -> dict[str, object]:
    """What the lineage says of a source."""
    dataset = source.dataset
    root = getattr(dataset, "root", None) or getattr(dataset, "annotation_json", None)
    name = type(dataset).__name__ if root is None else Path(root).name
    # shards are counted, since counting their pictures would read them all
    size = {"shards": len(dataset.shards)} if isinstance(dataset, TarShards) else {"images": len(dataset)}
    return {"name": name, **size, "weight": source.weight}
