"""Distillation of a pruned encoder, with the alignment of inner features (SlimSAM, eq. 5 to 8)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sam_edge.compress.features import Kind, feature_loss, recorded
from sam_edge.compress.teacher import EmbeddingStore, Teacher
from sam_edge.data.split import is_val
from sam_edge.errors import TrainingError
from sam_edge.models.sam import EdgeSam
from sam_edge.training.loop import LoopOptions, Progress, Validate, fit
from sam_edge.training.pictures import PictureOptions, Pictures, PictureStream
from sam_edge.training.processes import world
from sam_edge.training.stream import step_batches

OnStep = Callable[[Progress, dict[str, float]], None]


@dataclass(frozen=True)
class DistilOptions:
    """How a pruned encoder learns its teacher's embedding back."""

    epochs: int | None = None
    """Passes over the pictures in all; 0 only prunes. By default the paper's: 40, above a ratio of 0.5 80."""
    align_epochs: int = 10
    """Epochs N of each stage that align inner features too (eq. 6, 8), half of the stage's at most; 0 aligns none."""
    batch_size: int = 4
    """Pictures per step and process."""
    learning_rate: float = 1e-4
    """Learning rate of Adam, halved after 4 epochs without improvement."""
    views: int = 1
    """Different views of each picture, taken in turn; the first shows all of it. More help where pictures are few."""
    cache_gb: float = 32.0
    """Disk that the teacher's embeddings may fill while the run lasts, in units of 10^9 bytes."""
    workers: int = 1
    """Processes that read and crop."""
    bf16: bool = False
    """Autocast to bfloat16."""
    seed: int = 0
    """Seed of the order and the crops."""

    def __post_init__(self) -> None:
        """Raises TrainingError for what no run can be made of, before anything is computed for it."""
        for name, least in (("epochs", 0), ("align_epochs", 0), ("workers", 0), ("batch_size", 1), ("views", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name} must be at least {least}, got {value}.")
        if not 0 <= self.cache_gb < math.inf or not 0 < self.learning_rate < math.inf:
            raise TrainingError(
                f"cache_gb cannot be negative, and learning_rate must be positive, got {self.cache_gb} and "
                f"{self.learning_rate}."
            )


@dataclass(frozen=True)
class Alignment:
    """An inner teacher: what is aligned with it, and by how much in each epoch."""

    model: EdgeSam
    """v0 for the bottlenecks, v1 for the embeddings."""
    kind: Kind
    epochs: int
    """N: the epochs in which there is anything to align."""

    def weight(self, epoch: int) -> float:
        """Alpha of eq. 6 (bottleneck) or eq. 8 (embedding) in an epoch, from 0."""
        if epoch >= self.epochs:
            return 0.0
        return 0.5 if self.kind == "bottleneck" else (self.epochs - epoch - 1) / self.epochs


def split_indices(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; too few pictures for a split serve as both."""
    held_out = [index for index, name in enumerate(names) if is_val(name)]
    training = [index for index, name in enumerate(names) if not is_val(name)]
    return training or held_out, held_out or training


def steps_per_epoch(names: Sequence[str], options: DistilOptions) -> int:
    """Optimizer steps of a pass over the pictures, all processes together."""
    return max(len(split_indices(names)[0]) // (options.batch_size * world()), 1)


def open_teacher(model: EdgeSam, pictures: Pictures, options: DistilOptions, folder: Path | None) -> Teacher:
    """The original model with its embeddings kept in `folder`; without a folder none are."""
    config = model.config
    shape = (config.decoder.dim, config.grid, config.grid)
    views = len(pictures) * options.views
    return Teacher(model, EmbeddingStore(folder, views, shape, int(options.cache_gb * 1e9)))


def distil(
    student: EdgeSam,
    teacher: Teacher,
    pictures: Pictures,
    options: DistilOptions,
    epochs: int,
    *,
    alignment: Alignment | None = None,
    validate: Validate,
    state_file: Path | None = None,
    identity: str = "",
    on_step: OnStep | None = None,
) -> Progress:
    """Train the student's image encoder in place to give the teacher's embedding; the decoder is the teacher's.

    The pictures' val split is held out; the weights that `validate` likes best are kept.

    Raises:
        DataError: no readable picture. TrainingError: the loss diverged.
    """
    config = student.config
    views = PictureOptions(config.image_size, padding=config.pixel_mean, views=options.views)
    stream = PictureStream(pictures, split_indices(pictures.names)[0], views, options.seed)
    per_epoch = steps_per_epoch(pictures.names, options)
    loop = LoopOptions(
        steps=epochs * per_epoch,
        learning_rate=options.learning_rate,
        optimizer="adam",
        schedule="plateau",
        bf16=options.bf16,
        validate_every=per_epoch,
    )
    student.requires_grad_(False)
    student.image_encoder.requires_grad_(True)

    def loss(batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        numbers, images = batch
        pixels = student.preprocess(images.to(student.device).float())
        return alignment_loss(student, teacher, alignment, numbers, pixels, step // per_epoch), {}

    return fit(
        student,
        loss,
        lambda first, last: step_batches(
            stream, options.batch_size, first, last, workers=options.workers, collate=_stacked
        ),
        loop,
        state_file=state_file,
        identity=json.dumps([identity, asdict(options), epochs, pictures.names, world()], sort_keys=True),
        validate=validate,
        on_step=on_step,
    )


def alignment_loss(
    student: EdgeSam,
    teacher: Teacher,
    alignment: Alignment | None,
    numbers: Int[Tensor, "b"],
    pixels: Float[Tensor, "b 3 s s"],
    epoch: int,
) -> Float[Tensor, ""]:
    """Eq. 5 with the bottlenecks of v0, eq. 7 with the embeddings of v1; without either the last term alone.

    An inner teacher runs in the epochs in which it has a weight, and never after.
    """
    alpha = 0.0 if alignment is None else alignment.weight(epoch)
    if alignment is None or alpha == 0:
        return F.mse_loss(student.encode(pixels).float(), teacher.embedding(numbers, pixels))
    with torch.no_grad(), recorded(alignment.model.image_encoder, alignment.kind) as wanted:
        inner = alignment.model.encode(pixels)
    with recorded(student.image_encoder, alignment.kind) as features:
        embedding = student.encode(pixels).float()
    aligned = feature_loss(features, wanted)
    if alignment.model is teacher.model:
        # the pass that gave the features gave the embedding too
        final = teacher.store.filled(numbers, inner).to(pixels.device)
    else:
        aligned = aligned + F.mse_loss(embedding, inner.float())
        final = teacher.embedding(numbers, pixels)
    return alpha * aligned + (1 - alpha) * F.mse_loss(embedding, final)


def _stacked(examples: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([number for number, _ in examples]), torch.stack([image for _, image in examples])
