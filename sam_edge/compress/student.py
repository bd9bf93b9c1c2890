"""Students of distillation: somebody's image encoder, the teacher's prompt encoder and mask decoder."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sam_edge.errors import CompressionError
from sam_edge.models.registry import RANDOM, TIMM, architecture, load_model
from sam_edge.models.resize import resized
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.models.timm_weights import load_backbone
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import KNOWN

DecoderStart = Literal["trained", "frozen", "scratch"]
Projection = Literal["folded", "kept"]


@dataclass(frozen=True)
class StudentOptions:
    """Who learns."""

    student: str
    """A known name, whose architecture is taken; or a checkpoint file or folder, whose weights are taken too; or
    `timm:NAME[=FILE]`, a pretrained backbone of timm's; `random:` in front of any takes its architecture alone."""
    image_size: int | None = None
    """Side of the student's input in pixels; by default its own, and at most the teacher's."""
    pretrained: bool = False
    """Start a known name from its own weights too, instead of at random."""
    decoder: DecoderStart = "trained"
    """`trained` starts as the teacher's and learns, `frozen` stays it; `scratch`, prompts too, owes it nothing."""
    projection: Projection = "folded"
    """Where its weights end in other channels: a projection `folded` into the neck, or `kept` as a layer after it."""


def build_student(teacher: EdgeSam, options: StudentOptions, seed: int) -> EdgeSam:
    """The student before its first step, on the teacher's device, with what is to be trained marked.

    Raises:
        ModelError: no such student. CheckpointError: weights that cannot be had.
        CompressionError: a student larger than its teacher, quantized, or already projected.
    """
    name = options.student.removeprefix(RANDOM)
    named = name in KNOWN or name.startswith(TIMM)
    source = None if named and not (options.pretrained and name in KNOWN) else load_model(name)
    config = architecture(name) if source is None else source.config
    if not _has_weights(options):
        source = None
    if config.quantization is not None or teacher.config.quantization is not None:
        raise CompressionError("distillation works on float models: give the checkpoint from before quantize.")
    wanted = student_config(config, teacher.config, options)
    student = EdgeSam(wanted)
    initialise(student, seed)
    if source is not None:
        encoder = resized(source, wanted.image_size).image_encoder.state_dict()
        student.image_encoder.load_state_dict(projected(encoder, student, teacher, seed))
    elif options.decoder != "scratch":
        # what the decoder expects of the embedding's scale is in the neck's last normalisation
        student.image_encoder.neck[3].load_state_dict(teacher.image_encoder.neck[3].state_dict())
    if options.student.startswith(TIMM):
        load_backbone(student.image_encoder, name.removeprefix(TIMM))
    if options.decoder != "scratch":
        student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
        student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    student.requires_grad_(True)
    student.prompt_encoder.requires_grad_(options.decoder == "scratch")
    student.mask_decoder.requires_grad_(options.decoder != "frozen")
    return student.to(next(teacher.parameters()).device)


def _has_weights(options: StudentOptions) -> bool:
    """Whether the student's whole encoder starts from weights of its own."""
    if options.student.startswith((RANDOM, TIMM)):
        return False
    return options.pretrained or options.student not in KNOWN


def student_config(config: ModelConfig, teacher: ModelConfig, options: StudentOptions) -> ModelConfig:
    """The student's config: its own encoder, the teacher's decoder and thresholds.

    Raises:
        CompressionError: a student larger than its teacher, or already projected.
    """
    size = min(config.image_size, teacher.image_size) if options.image_size is None else options.image_size
    if size > teacher.image_size:
        raise CompressionError(
            f"the student's image size must be at most the teacher's {teacher.image_size}, got {size}."
        )
    other_width = config.decoder.dim != teacher.decoder.dim
    # an architecture without weights is built for the teacher's width at once
    if other_width and _has_weights(options):
        if config.neck:
            raise CompressionError("this student's neck is projected already: give the model that it came from.")
        config = config.replace(neck=config.decoder.dim, projection=options.projection == "kept")
    return config.replace(
        image_size=size, decoder=teacher.decoder, thresholds=teacher.thresholds, quantization=None, lineage=()
    )


def projected(encoder: dict[str, Tensor], student: EdgeSam, teacher: EdgeSam, seed: int) -> dict[str, Tensor]:
    """Weights of an encoder, as they are where its channels are the student's; else with a projection to those.

    The projection starts with orthonormal rows. Folded, it is multiplied into the neck's last convolution, which it is
    then part of, in front of the teacher's normalisation; kept, it stays a layer behind the whole neck.
    """
    config = student.config
    if encoder["neck.2.weight"].shape[0] == config.decoder.dim:
        return encoder
    matrix = torch.empty(config.decoder.dim, encoder["neck.2.weight"].shape[0])
    nn.init.orthogonal_(matrix, generator=torch.Generator().manual_seed(seed))
    if config.projection:
        return encoder | {"neck.4.weight": matrix[..., None, None], "neck.4.bias": torch.zeros(len(matrix))}
    folded = torch.einsum("oc,cikl->oikl", matrix, encoder["neck.2.weight"])
    last = {f"neck.3.{name}": value for name, value in teacher.image_encoder.neck[3].state_dict().items()}
    return encoder | {"neck.2.weight": folded} | last
