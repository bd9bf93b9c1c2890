"""Full-stage distillation: the embedding, the two-way transformer's output tokens, the masks (TinySAM, eq. 1 to 5)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sam_edge.errors import TrainingError
from sam_edge.models.decoder import PromptableDecoder
from sam_edge.segment.prompts import Prompts
from sam_edge.training.losses import mask_iou, mask_loss


@dataclass(frozen=True)
class LossWeights:
    """The weights of eq. 4, and of the labels' part of eq. 5.

    The paper gives none. By these the parts' gradients are about equally long in the encoder of a half-trained student
    of `nano`: L1 of logits, nearly all of them far outside of the mask, is 60 to 100 times as steep as L1 of the
    embedding, and with equal weights little else is learned.
    """

    alpha: float = 1.0
    """Weight of the embedding's distance to the teacher's (eq. 1)."""
    beta: float = 0.3
    """Weight of the output tokens' distance (eq. 3)."""
    gamma: float = 0.01
    """Weight of the mask logits' distance (eq. 2)."""
    labels: float = 0.3
    """Weight of the masks' and the IoU's loss (eq. 5) against labels, or against the teacher's own masks."""

    def __post_init__(self) -> None:
        values = (self.alpha, self.beta, self.gamma, self.labels)
        if min(values) < 0 or not any(values):
            raise TrainingError(f"loss weights must be at least 0, and one of them more, got {values}.")

    @property
    def decodes(self) -> bool:
        """Whether anything behind the encoder is looked at."""
        return bool(self.beta or self.gamma or self.labels)

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's decoder has to run."""
        return bool(self.beta or self.gamma)


@dataclass(frozen=True)
class Decoded:
    """A network's outputs for the prompts of a step."""

    tokens: Float[Tensor, "b n 5 c"]
    """The two-way transformer's output tokens: of the IoU, then of the four masks."""
    logits: Float[Tensor, "b n 4 h w"]
    """Mask logits."""
    iou: Float[Tensor, "b n 4"]
    """Predicted IoU."""
    ambiguous: Bool[Tensor, "b n"]
    """Which prompts are one point alone."""


@dataclass(frozen=True)
class StepOutputs:
    """All that a step has computed: what extra losses can look at."""

    batch: Any
    """The views (`compress.distil_views.DistilBatch`)."""
    embedding: Float[Tensor, "b c g g"]
    """The student's."""
    wanted_embedding: Float[Tensor, "b c g2 g2"]
    """The teacher's, at its own grid."""
    student: Decoded | None
    """None where only the embedding is distilled."""
    teacher: Decoded | None
    """None where no weight asks for it."""


ExtraLoss = Callable[[StepOutputs], Float[Tensor, ""]]
"""A loss of the user's own, added to the total."""


class OutputTokens:
    """What the two-way transformer's last layer gives, caught by a hook while the decoder runs."""

    def __init__(self, decoder: PromptableDecoder) -> None:
        self.count = 1 + decoder.mask_decoder.num_mask_tokens
        self.caught: Tensor | None = None
        self._hook = decoder.mask_decoder.transformer.norm_final_attn.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # behind the output tokens lie those of the prompt
        self.caught = output[:, : self.count]

    def __enter__(self) -> "OutputTokens":
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def decode_views(decoder: PromptableDecoder, embeddings: Float[Tensor, "b c g g"], prompts: Prompts) -> Decoded:
    """Decode image by image: each shares its part of the first layer among all of its prompts."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with OutputTokens(decoder) as output:
        for embedding, coords, labels in zip(embeddings, prompts.coords, prompts.labels, strict=True):
            state = decoder.share(decoder.prepare(embedding[None]))
            mask_tokens, iou, image = decoder.predict(state, coords[None], labels[None])
            assert output.caught is not None
            parts.append((output.caught.float(), decoder.upscale(mask_tokens, image)[0].float(), iou[0].float()))
    tokens, logits, iou = (torch.stack(values) for values in zip(*parts, strict=True))
    return Decoded(tokens, logits, iou, prompts.single_points)


@torch.no_grad()
def first_masks(decoder: PromptableDecoder, embeddings: Float[Tensor, "b c g g"], prompts: Prompts) -> Tensor:
    """The single mask M_i (eq. 7) of each prompt set, B x N x h x w bool, without gradient."""
    masks = []
    for embedding, coords, labels in zip(embeddings.detach(), prompts.coords, prompts.labels, strict=True):
        state = decoder.share(decoder.prepare(embedding[None]))
        mask_tokens, _, image = decoder.predict(state, coords[None], labels[None])
        masks.append(decoder.upscale(mask_tokens, image)[0, :, 0] > 0)
    return torch.stack(masks)


def embedding_loss(student: Float[Tensor, "b c g g"], teacher: Float[Tensor, "b c h h"]) -> Float[Tensor, ""]:
    """Eq. 1, L1; the teacher's embedding is resampled where the student's grid is another."""
    return F.l1_loss(student.float(), resampled(teacher.float(), student.shape[-1]))


def token_loss(student: Decoded, teacher: Decoded) -> Float[Tensor, ""]:
    """Eq. 3, L1."""
    return F.l1_loss(student.tokens, teacher.tokens)


def output_loss(student: Decoded, teacher: Decoded) -> Float[Tensor, ""]:
    """Eq. 2, L1 of mask logits; the teacher's are resampled where the student's are of another size."""
    wanted = resampled(teacher.logits.flatten(0, 1), student.logits.shape[-1])
    return F.l1_loss(student.logits.flatten(0, 1), wanted)


def label_loss(student: Decoded, target: Float[Tensor, "b n h w"]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """L_mask + L_ious of eq. 5: 20 x focal + dice, L1 of the IoU.

    Of the single mask, and for single points of the best of three, as in SAM's training.
    """
    wanted = target[:, :, None].expand_as(student.logits)
    per_mask = mask_loss(student.logits, wanted)
    masks = per_mask[..., 0].mean() + (per_mask[..., 1:].amin(-1) * student.ambiguous).mean()
    with torch.no_grad():
        actual = mask_iou(student.logits, wanted)
    iou = F.l1_loss(student.iou, actual)
    return masks + iou, {"mask": masks.detach(), "iou": iou.detach(), "miou": actual[..., 0].mean()}


def total_loss(
    outputs: StepOutputs,
    target: Float[Tensor, "b n h w"] | None,
    weights: LossWeights,
    extra: Mapping[str, ExtraLoss],
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Eq. 5 and the extra losses; returns each part as it is before its weight."""
    total = outputs.embedding.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}

    def add(name: str, weight: float, value: Tensor) -> None:
        nonlocal total
        total = total + weight * value
        parts[name] = value.detach()

    if weights.alpha:
        add("embedding", weights.alpha, embedding_loss(outputs.embedding, outputs.wanted_embedding))
    if weights.asks_teacher:
        assert outputs.student is not None
        assert outputs.teacher is not None
        if weights.beta:
            add("token", weights.beta, token_loss(outputs.student, outputs.teacher))
        if weights.gamma:
            add("output", weights.gamma, output_loss(outputs.student, outputs.teacher))
    if weights.labels:
        assert outputs.student is not None
        assert target is not None
        value, report = label_loss(outputs.student, target)
        add("labels", weights.labels, value)
        parts |= report
    for name, loss in extra.items():
        add(name, 1.0, loss(outputs))
    return total, parts


def resampled(values: Float[Tensor, "b c h h"], size: int) -> Float[Tensor, "b c g g"]:
    """At another side; averaged where it is smaller."""
    if values.shape[-1] == size:
        return values
    return F.interpolate(values, (size, size), mode="bilinear", antialias=True)


def rescaled(prompts: Prompts, factor: float) -> Prompts:
    """The same prompts in a frame `factor` times as large; pixel centres stay what they are."""
    return Prompts((prompts.coords + 0.5) * factor - 0.5, prompts.labels)
