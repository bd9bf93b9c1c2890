"""Boxes that are drawn: a box prompt given to SAM's decoder twice, as two corners and as a mask prompt.

SAM's corners are two points in a Fourier space, and a small decoder takes long to learn from them where the inside
of a box is, most of all of a box of a few pixels. The same box as a mask prompt says it cell by cell, by weights that
every SAM has.
"""

import torch
from jaxtyping import Float, Int
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from sam_edge.models.config import DecoderConfig
from sam_edge.models.prompts import BOX_END, BOX_START, Prompts

DEEPEST = 10.0
"""Largest logit of a drawn box, and, negative, the smallest: about what masks of earlier rounds have."""


class DrawingPromptEncoder(PromptEncoder):
    """segment-anything's prompt encoder, that draws boxes which come without a mask.

    So the model is the same in segment-anything's own predictor.
    """

    @property
    def cell_px(self) -> float:
        """Side of a cell of the mask prompt, in pixels of the model's frame."""
        return float(self.input_image_size[0] / self.mask_input_size[0])

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b c g g"]]:
        """Sparse and dense embeddings."""
        if boxes is not None and masks is None:
            corners = boxes.reshape(-1, 2, 2)
            masks = drawn(corners[:, 0], corners[:, 1], self.mask_input_size, self.cell_px)[:, None]
        sparse, dense = super().forward(points, boxes, masks)
        return sparse, dense


def with_masks(prompts: Prompts, config: DecoderConfig) -> bool:
    """Whether a mask prompt comes with any of these prompts, given or drawn."""
    return prompts.masks is not None or (config.draws_boxes and prompts.boxed)


def drawn(
    start: Float[Tensor, "*n 2"], end: Float[Tensor, "*n 2"], size: tuple[int, int], cell_px: float
) -> Float[Tensor, "*n h w"]:
    """Mask logits of the boxes between two corners: how many pixels a cell's centre lies inside, at most `DEEPEST`.

    Corners are (x, y) in pixels, the first the smaller; `cell_px` is a cell's side.
    """
    inside = []
    for axis, cells in ((1, size[0]), (0, size[1])):
        centres = (torch.arange(cells, device=start.device) + 0.5) * cell_px
        inside.append(torch.minimum(centres - start[..., axis, None], end[..., axis, None] - centres))
    rows, columns = inside
    return torch.minimum(rows[..., :, None], columns[..., None, :]).clamp(-DEEPEST, DEEPEST)


def drawn_prompts(
    coords: Float[Tensor, "b n p 2"], labels: Int[Tensor, "b n p"], size: tuple[int, int], cell_px: float
) -> tuple[Float[Tensor, "b n 1 h w"], Float[Tensor, "b n"]]:
    """Mask logits of the sets' boxes, and 1 for each set that has one."""
    start, end = ((coords * (labels == corner)[..., None]).sum(2) for corner in (BOX_START, BOX_END))
    return drawn(start, end, size, cell_px)[:, :, None], (labels == BOX_START).any(-1).to(coords.dtype)
