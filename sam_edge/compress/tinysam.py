"""`compress --method tinysam`: full-stage distillation with online hard prompts (TinySAM, section 3.2)."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sam_edge.compress.distil import split_indices
from sam_edge.compress.distil_views import DistilBatch, DistilStream, StoredViews, stack_distil_views
from sam_edge.compress.full_stage import (
    ExtraLoss,
    LossWeights,
    StepOutputs,
    decode_views,
    first_masks,
    rescaled,
    total_loss,
)
from sam_edge.compress.hard_prompts import HardPromptOptions, hard_prompts
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.compress.student import StudentOptions
from sam_edge.compress.watching import Watch
from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import TrainingError
from sam_edge.models.sam import EdgeSam
from sam_edge.training.loop import LoopOptions, Progress, fit
from sam_edge.training.pictures import Pictures
from sam_edge.training.processes import world
from sam_edge.training.prompting import seeded
from sam_edge.training.stream import step_batches

WATCHED_MASKS = 16
"""Masks of each held-out view that the student is watched by."""


@dataclass(frozen=True)
class TinySamOptions:
    """Settings of a full-stage distillation; defaults are the paper's where it names them."""

    student: StudentOptions
    """Who learns."""
    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses."""
    prompting: HardPromptOptions = field(default_factory=HardPromptOptions)
    """How prompts are found."""
    epochs: int = 8
    """Passes over all stored views of the train split."""
    steps: int | None = None
    """Optimizer steps, instead of `epochs`."""
    batch_size: int = 4
    """Views per step and process."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam, after a warm-up of a twentieth of the run; a cosine follows."""
    decoder_rate: float = 0.1
    """The decoder's learning rate, as a share of the encoder's: it comes trained from the teacher, and at the full rate
    unlearns on few pictures what the encoder has not caught up with."""
    ema_decay: float = 0.99
    """Decay of the weights' moving average, which is what comes out; 0 keeps the last weights."""
    validations: int = 8
    """Times that the student is looked at on held-out views; the best of them comes out. 0 never looks."""
    workers: int = 1
    """Processes that read and crop."""
    bf16: bool = False
    """Autocast to bfloat16."""
    seed: int = 0
    """Seed of the student, the order, the masks and the prompts."""

    def __post_init__(self) -> None:
        if not self.decoder_rate > 0:
            raise TrainingError(f"decoder_rate must be positive, got {self.decoder_rate}: --decoder frozen keeps it.")
        for name, least in (("epochs", 1), ("steps", 1), ("batch_size", 1), ("validations", 0), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name} must be at least {least}, got {value}.")


def distil_plan(names: list[str], views: int, options: TinySamOptions) -> LoopOptions:
    """The training loop's settings for pictures of these names."""
    per_epoch = max(len(split_indices(names)[0]) * views // (options.batch_size * world()), 1)
    steps = options.epochs * per_epoch if options.steps is None else options.steps
    return LoopOptions(
        steps=steps,
        learning_rate=options.learning_rate,
        optimizer="adam",
        rates=(("mask_decoder.*", options.decoder_rate),) if options.student.decoder == "trained" else (),
        warmup_steps=steps // 20,
        ema_decay=options.ema_decay,
        bf16=options.bf16,
        validate_every=max(steps // options.validations, 1) if options.validations else 0,
    )


class FullStage:
    """Eq. 5 on prompts of eq. 6: `loss(batch, step)` for the training loop."""

    def __init__(
        self,
        student: EdgeSam,
        teacher: EdgeSam,
        weights: LossWeights,
        prompting: HardPromptOptions,
        seed: int,
        extra: Mapping[str, ExtraLoss] | None = None,
    ) -> None:
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.weights, self.prompting, self.seed = weights, prompting, seed
        self.extra = extra or {}

    def __call__(self, batch: DistilBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The step's loss and its parts. The teacher's encoder never runs; the student's runs once."""
        student, device = self.student, next(self.student.parameters()).device
        embedding = student.encode(student.preprocess(batch.image.to(device).float()))
        wanted = batch.embedding.to(device)
        if not self.weights.decodes:
            return total_loss(StepOutputs(batch, embedding, wanted, None, None), None, self.weights, self.extra)
        masks = batch.masks.to(device)
        decoder, size = student.decoder, student.config.image_size
        prompts = hard_prompts(
            masks > 127,
            batch.boxes,
            batch.extent,
            size,
            lambda asked: first_masks(decoder, embedding, asked),
            self.prompting,
            seeded(self.seed, step),
        )
        theirs = None
        if self.weights.asks_teacher:
            with torch.no_grad():
                asked = rescaled(prompts, self.teacher.config.image_size / size)
                theirs = decode_views(self.teacher.decoder, wanted, asked)
        outputs = StepOutputs(batch, embedding, wanted, decode_views(decoder, embedding, prompts), theirs)
        return total_loss(outputs, masks.float() / 255, self.weights, self.extra)


def distil_full_stage(
    student: EdgeSam,
    teacher: EdgeSam,
    store: StoredEmbeddings,
    pictures: Pictures | Dataset[LabelledImage],
    options: TinySamOptions,
    *,
    extra: Mapping[str, ExtraLoss] | None = None,
    state_file: Path | None = None,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress:
    """Train `student` (see `build_student`) in place; the val split of the pictures is held out.

    Labelled pictures bring their own masks; for others the teacher's stored ones stand in. The history's entries with
    a `score` hold what the student could do on held-out views: `miou_point`, `miou_box`, `agreement`.

    Raises:
        DataError: no view has a mask. TrainingError: the loss diverged. CompressionError: a store of other pictures.
    """
    training, held_out = split_indices(pictures.names)
    prompts = options.prompting.prompts if options.weights.decodes else 0
    stream = DistilStream(StoredViews(store, pictures, student.config, prompts), training, options.seed)
    watched_views = StoredViews(store, pictures, student.config, WATCHED_MASKS)
    watch = Watch(teacher, watched_views, held_out if options.validations else [])

    def batches(first: int, last: int) -> Iterable[DistilBatch]:
        return step_batches(
            stream, options.batch_size, first, last, workers=options.workers, collate=stack_distil_views
        )

    def validate(model: nn.Module) -> dict[str, float]:
        watched = watch(model)
        return watched | {"score": (watched["miou_point"] + watched["miou_box"]) / 2}

    who = [asdict(options), asdict(student.config), store.index, pictures.names, sorted(extra or {}), world()]
    return fit(
        student,
        FullStage(student, teacher, options.weights, options.prompting, options.seed, extra),
        batches,
        distil_plan(pictures.names, store.options.views, options),
        state_file=state_file,
        identity=json.dumps(who, sort_keys=True),
        # without a held-out mask every score is alike, and the first weights would pass for the best
        validate=validate if watch.views else None,
        on_step=on_step,
    )
