"""What a student can do so far: masks of held-out views by one point and by a box, and how far they are the teacher's.

Measured on the decoder's own grid, with the teacher's stored embeddings: cheap enough to be asked every few steps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sam_edge.compress.distil_views import DistilView, StoredViews
from sam_edge.compress.full_stage import first_masks, resampled, rescaled
from sam_edge.data.sample import most_interior_point
from sam_edge.errors import DataError
from sam_edge.models.prompts import on_device
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.prompts import FOREGROUND, Prompts

VIEWS = 32
"""Held-out views that are looked at; each shows a whole picture."""


class Watch:
    """`watch(student)` gives mean IoU by point and by box, and the agreement with the teacher by both."""

    def __init__(self, teacher: EdgeSam, views: StoredViews, indices: Sequence[int]) -> None:
        self.views: list[DistilView] = []
        rng = np.random.default_rng(0)
        for picture in indices:
            try:
                found = views.view(picture, 0, rng)
            except DataError:
                continue
            if found is not None:
                self.views.append(found)
            if len(self.views) == VIEWS:
                break
        self._prompts = [_prompts(view) for view in self.views]
        factor = teacher.config.image_size / views.student.image_size
        self._of_teacher = [
            tuple(
                _as_seen(
                    first_masks(teacher.decoder, view.embedding[None].to(device), _moved(asked, factor, device)), view
                )
                for asked in prompts
            )
            for device in [next(teacher.parameters()).device]
            for view, prompts in zip(self.views, self._prompts, strict=True)
        ]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """miou_point, miou_box, agreement: means over masks."""
        assert isinstance(model, EdgeSam)
        device = next(model.parameters()).device
        rows: dict[str, list[Tensor]] = {"miou_point": [], "miou_box": [], "agreement": []}
        for view, prompts, of_teacher in zip(self.views, self._prompts, self._of_teacher, strict=True):
            embedding = model.encode(model.preprocess(torch.from_numpy(view.image)[None].to(device).float()))
            wanted = torch.from_numpy(view.masks) > 127
            for name, asked, theirs in zip(("miou_point", "miou_box"), prompts, of_teacher, strict=True):
                mine = first_masks(model.decoder, embedding, _moved(asked, 1.0, device))[0].cpu()
                rows[name].append(overlap(mine, wanted))
                rows["agreement"].append(overlap(mine, theirs))
        return {name: torch.cat(values).mean().item() if values else 0.0 for name, values in rows.items()}


def overlap(mine: Bool[Tensor, "n h w"], wanted: Bool[Tensor, "n h w"]) -> Tensor:
    """IoU of each pair; two empty masks agree."""
    union = (mine | wanted).sum((-2, -1))
    both = (mine & wanted).sum((-2, -1))
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)


def _prompts(view: DistilView) -> tuple[Prompts, Prompts]:
    """The most interior point of each mask, and its box."""
    cell = view.image.shape[-1] / view.masks.shape[-1]
    cells = np.array([most_interior_point(mask > 127) for mask in view.masks], np.float32)
    points = torch.from_numpy((cells + 0.5) * cell - 0.5)[None, :, None]
    labels = torch.full(points.shape[:3], FOREGROUND)
    return Prompts.build(points, labels), Prompts.build(boxes=torch.from_numpy(view.boxes)[None])


def _moved(prompts: Prompts, factor: float, device: torch.device) -> Prompts:
    return on_device(rescaled(prompts, factor), device)


def _as_seen(masks: Bool[Tensor, "1 n h w"], view: DistilView) -> Bool[Tensor, "n m m"]:
    """A teacher's masks at the student's size."""
    return (resampled(masks.float(), view.masks.shape[-1])[0] > 0.5).cpu()
