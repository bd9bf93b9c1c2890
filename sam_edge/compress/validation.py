"""How close a student is to its teacher, without labels: the embedding's error, and the agreement of masks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.errors import DataError
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.prompts import Prompts
from sam_edge.training.pictures import Pictures

IMAGES = 16
"""Pictures that are looked at, at most; their teacher embeddings are kept in memory."""
POINTS_PER_SIDE = 4
"""Grid of single points whose masks are compared."""


class Closeness:
    """Compares students with one teacher on the first few readable of the given pictures, each encoded once."""

    def __init__(self, teacher: EdgeSam, pictures: Pictures, indices: Sequence[int], images: int = IMAGES) -> None:
        """Encode the teacher's side.

        Raises:
            DataError: none of the pictures can be read.
        """
        self._inputs: list[Tensor] = []
        first: DataError | None = None
        for index in indices:
            try:
                self._inputs.append(torch.from_numpy(to_pixels(pictures[index][1], teacher.config)[0]))
            except DataError as error:
                first = first or error
                continue
            if len(self._inputs) == images:
                break
        if not self._inputs:
            raise DataError(f"none of the {len(indices)} held-out pictures can be read; the first: {first}")
        self._teacher, self._embeddings = teacher, self._encoded(teacher)

    def embedding_error(self, student: EdgeSam) -> float:
        """See the function of that name; cheap enough to be asked after every epoch."""
        return embedding_error(self._encoded(student), self._embeddings)

    def of(self, student: EdgeSam) -> dict[str, float]:
        """`embedding_error`, see there, and `mask_agreement`: mean IoU of the two models' masks of a grid of points.

        Two empty masks agree.
        """
        embeddings, scores = self._encoded(student), []
        of_teacher = self._segmented(self._teacher, self._embeddings)
        for mine, wanted in zip(self._segmented(student, embeddings), of_teacher, strict=True):
            union = (mine | wanted).sum((-2, -1))
            overlap = (mine & wanted).sum((-2, -1))
            scores.append(torch.where(union > 0, overlap / union.clamp(min=1), 1.0))
        agreement = torch.cat(scores).mean().item()
        return {"embedding_error": embedding_error(embeddings, self._embeddings), "mask_agreement": agreement}

    @torch.no_grad()
    def _encoded(self, model: EdgeSam) -> list[Tensor]:
        return [model.encode(pixels.to(model.device)) for pixels in self._inputs]

    @torch.no_grad()
    def _segmented(self, model: EdgeSam, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Per picture, the masks of the grid's points, N x h x w."""
        ticks = (torch.arange(POINTS_PER_SIDE) + 0.5) * (model.config.image_size / POINTS_PER_SIDE)
        points = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).reshape(1, -1, 1, 2)
        prompts = Prompts.build(
            points.to(model.device), torch.ones(points.shape[:3], dtype=torch.long).to(model.device)
        )
        return [model.decoder.decode(embedding, prompts)[0][0, :, 0] > 0 for embedding in embeddings]


def embedding_error(got: Sequence[Float[Tensor, "..."]], wanted: Sequence[Float[Tensor, "..."]]) -> float:
    """Squared error over the teacher's variance, all pictures together: 0 is the teacher, 1 a constant."""
    teacher = torch.cat([embedding.flatten() for embedding in wanted])
    student = torch.cat([embedding.flatten() for embedding in got])
    return ((student - teacher).square().mean() / teacher.var()).item()
