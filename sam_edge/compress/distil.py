"""Distillation of the final image embedding (SlimSAM, the last term of eq. 5 and eq. 7)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam_edge.data.split import is_val
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.frame import to_pixels
from sam_edge.training.loop import LoopOptions, Progress, fit
from sam_edge.training.pictures import PictureOptions, Pictures, PictureStream
from sam_edge.training.stream import step_batches

VALIDATION_IMAGES = 16
"""Pictures that the embedding error is measured on; their teacher embeddings are kept in memory."""


@dataclass(frozen=True)
class DistilOptions:
    """How a pruned encoder learns its teacher's embedding back."""

    epochs: int = 40
    """Passes over the pictures; 0 only prunes."""
    batch_size: int = 4
    """Pictures per step."""
    learning_rate: float = 1e-4
    """Peak learning rate of Adam; the course is a cosine."""
    workers: int = 1
    """Processes that read and crop."""
    bf16: bool = False
    """Autocast to bfloat16."""
    seed: int = 0
    """Seed of the order and the crops."""


def split_indices(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out; too few pictures for a split serve as both."""
    held_out = [index for index, name in enumerate(names) if is_val(name)]
    training = [index for index, name in enumerate(names) if not is_val(name)]
    return training or held_out, held_out or training


def distil_steps(names: Sequence[str], options: DistilOptions) -> int:
    """Optimizer steps that a distillation on pictures of these names takes."""
    return options.epochs * max(len(split_indices(names)[0]) // options.batch_size, 1)


def distil_embedding(
    student: EdgeSam,
    teacher: EdgeSam,
    pictures: Pictures,
    options: DistilOptions,
    *,
    state_file: Path | None = None,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress:
    """Train the student's image encoder in place to give the teacher's embedding; the decoder is the teacher's.

    The pictures' val split is held out; the weights with the smallest embedding error there are kept.

    Raises:
        DataError: no readable picture. TrainingError: the loss diverged.
    """
    training, held_out = split_indices(pictures.names)
    config = student.config
    stream = PictureStream(
        pictures, training, PictureOptions(config.image_size, padding=config.pixel_mean), options.seed
    )
    steps = distil_steps(pictures.names, options)
    loop = LoopOptions(
        steps=steps,
        learning_rate=options.learning_rate,
        optimizer="adam",
        warmup_steps=min(50, steps // 20),
        bf16=options.bf16,
        validate_every=max(steps // min(options.epochs, 20), 1),
    )
    teacher.requires_grad_(False).eval()
    student.requires_grad_(False)
    student.image_encoder.requires_grad_(True)

    def loss(batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = student.preprocess(batch.to(student.device).float())
        with torch.no_grad():
            wanted = teacher.encode(pixels)
        value = F.mse_loss(student.encode(pixels).float(), wanted.float())
        return value, {}

    return fit(
        student,
        loss,
        lambda first, last: step_batches(
            stream, options.batch_size, first, last, workers=options.workers, collate=torch.stack
        ),
        loop,
        state_file=state_file,
        identity=json.dumps([asdict(options), asdict(config), pictures.names], sort_keys=True),
        validate=_validation(teacher, pictures, held_out),
        on_step=on_step,
    )


def _validation(teacher: EdgeSam, pictures: Pictures, indices: Sequence[int]) -> Callable[[nn.Module], float]:
    """Negative embedding error on the first few of `indices`."""
    inputs = [to_pixels(pictures[index][1], teacher.config)[0] for index in indices[:VALIDATION_IMAGES]]
    with torch.no_grad():
        wanted = [teacher.encode(pixels.to(teacher.device)) for pixels in inputs]

    def validate(model: nn.Module) -> float:
        assert isinstance(model, EdgeSam)
        return -embedding_error([model.encode(pixels.to(model.device)) for pixels in inputs], wanted)

    return validate


def embedding_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Squared error over the teacher's variance, all pictures together: 0 is the teacher, 1 a constant."""
    teacher = torch.cat([embedding.flatten() for embedding in wanted])
    student = torch.cat([embedding.flatten() for embedding in got])
    return ((student - teacher).square().mean() / teacher.var()).item()
