"""Training on labels with a teacher beside them: SAM's interactive rounds, and TinySAM's eq. 4 on each step's first."""

from dataclasses import asdict

import torch
from torch import Tensor

from sam_edge.compress.full_stage import LossWeights, StepOutputs, decode_views, resampled, rescaled, total_loss
from sam_edge.errors import CompressionError
from sam_edge.models.canvas import CanvasWindow
from sam_edge.models.checkpoint import weights_sha256
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.prompts import Prompts
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.stream import ViewBatch


class TaughtSegmentation(InteractiveSegmentation):
    """`loss(batch, step)` for the training loop; the teacher sees every view as it comes, at its own image size."""

    def __init__(
        self, model: EdgeSam, options: InteractiveOptions, seed: int, teacher: EdgeSam, weights: LossWeights
    ) -> None:
        """`weights` are eq. 4's alone, without labels: their loss is what this is added to.

        Raises:
            CompressionError: a teacher of another width.
        """
        super().__init__(model, options, seed)
        width, wanted = model.config.decoder.dim, teacher.config.decoder.dim
        if width != wanted:
            raise CompressionError(
                f"the teacher's embedding has {wanted} channels and the model's {width}: "
                "choose a teacher of the same decoder, or `sam-edge compress --method tinysam`, which projects."
            )
        self.teacher, self.weights = teacher.requires_grad_(False).eval(), weights
        self.settings = {"teacher": {"sha256": weights_sha256(teacher), **asdict(weights)}}

    def decode(
        self, sees: EdgeSam | CanvasWindow, batch: ViewBatch, embeddings: Tensor, prompts: Prompts
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The first round's outputs with eq. 4's parts, weighted; later rounds are the labels' alone."""
        if prompts.masks is not None:
            return super().decode(sees, batch, embeddings, prompts)
        mine = decode_views(sees.decoder, embeddings, prompts)
        with torch.no_grad():
            wanted = self._embedding(batch, embeddings.device)
            asked = rescaled(prompts, self.teacher.config.image_size / batch.image.shape[-1])
            theirs = decode_views(self.teacher.decoder, wanted, asked) if self.weights.asks_teacher else None
        value, _ = total_loss(StepOutputs(batch, embeddings, wanted, mine, theirs), None, self.weights, {})
        return mine.logits, mine.iou, {"teacher": value}

    def _embedding(self, batch: ViewBatch, device: torch.device) -> Tensor:
        """The teacher's, of the same views."""
        pixels = resampled(batch.image.to(device).float(), self.teacher.config.image_size)
        return self.teacher.encode(self.teacher.preprocess(pixels))
