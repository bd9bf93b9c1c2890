"""Prompts that are drawn: a box or a click given to SAM's decoder twice, as points and as a mask prompt.

SAM's points are places in a Fourier space, and a small decoder takes long to learn from them where the inside of a box
is, or which few pixels are at a click. The same as a mask prompt says it cell by cell, by weights that every SAM has.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from sam_edge.segment.config import DecoderConfig
from sam_edge.segment.prompts import BOX_END, BOX_START, FOREGROUND, Prompts

DEEPEST = 10.0
"""Largest logit of a drawn box, and, negative, the smallest: about what masks of earlier rounds have."""
CLICK_REACH_PX = 2.0
"""A click is drawn as the box that reaches so many pixels to each side of it."""


class DrawingPromptEncoder(PromptEncoder):
    """segment-anything's prompt encoder, that draws what comes without a mask.

    So the model is the same in segment-anything's own predictor.
    """

    def __init__(self, draws: DecoderConfig, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.draws_boxes, self.draws_points = draws.draws_boxes, draws.draws_points

    @property
    def cell_px(self) -> float:
        """Side of a cell of the mask prompt, in pixels of the model's frame."""
        return float(self.input_image_size[0] / self.mask_input_size[0])

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b c g g"]]:
        """Sparse and dense embeddings."""
        sparse, dense = super().forward(points, boxes, masks)
        if masks is not None:
            return sparse, dense
        coords, labels = (None, None) if points is None else (part[:, None] for part in points)
        prompts = Prompts.build(coords, labels, None if boxes is None else boxes.reshape(-1, 1, 4))
        if self.draws(prompts.labels):
            # its automatic generator's points are doubles
            floats = prompts.coords.to(self.no_mask_embed.weight.dtype)
            drawings, is_drawn = self.drawn(floats, prompts.labels, self.mask_input_size)
            dense = torch.where(is_drawn[:, :1, None, None] > 0, self._embed_masks(drawings[:, 0]), dense)
        return sparse, dense

    def draws(self, labels: Int[Tensor, "b n p"]) -> bool:
        """Whether any of these sets is drawn."""
        return bool(self._drawn_sets(labels).any())

    def drawn(
        self, coords: Float[Tensor, "b n p 2"], labels: Int[Tensor, "b n p"], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "b n 1 h w"], Float[Tensor, "b n"]]:
        """Mask logits, of `size` cells, of the sets' boxes and, where there is none, of their first points; and 1 for
        the sets that are drawn."""
        start, end = ((coords * (labels == corner)[..., None]).sum(2) for corner in (BOX_START, BOX_END))
        if self.draws_points:
            boxed = (labels == BOX_START).any(-1)[..., None]
            first, last = around(coords[:, :, 0])
            start, end = torch.where(boxed, start, first), torch.where(boxed, end, last)
        masks = drawn(start, end, size, self.cell_px)
        return masks[:, :, None], self._drawn_sets(labels).to(coords.dtype)

    def _drawn_sets(self, labels: Int[Tensor, "b n p"]) -> Bool[Tensor, "b n"]:
        boxed = (labels == BOX_START).any(-1)
        clicked = (labels[..., 0] == FOREGROUND) & ~boxed
        return (boxed & self.draws_boxes) | (clicked & self.draws_points)

    @property
    def click_side(self) -> int:
        """Side in tokens of a square that holds all of a drawn click that differs from what lies far from it."""
        patch = 4 * self.cell_px
        return min(math.ceil(2 * (CLICK_REACH_PX + DEEPEST) / patch) + 1, self.image_embedding_size[0])

    def far(self) -> Float[Tensor, "c 1"]:
        """The dense embedding of a token far from a click."""
        weight = self.no_mask_embed.weight
        dense: Tensor = self.mask_downscaling(weight.new_full((1, 1, 4, 4), -DEEPEST))
        return dense[0, :, 0]

    def click_tokens(self, clicks: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, "n k c"], Float[Tensor, "n k hw"]]:
        """What drawn clicks, (x, y) in pixels, add to the dense embedding of `far`: at K tokens each, and which."""
        side, (rows, columns) = self.click_side, self.image_embedding_size
        patch = 4 * self.cell_px
        first = ((around(clicks)[0] - DEEPEST) / patch).floor()
        first = torch.stack([first[:, 0].clamp(0, columns - side), first[:, 1].clamp(0, rows - side)], 1)
        start, end = around(clicks - first * patch)
        masks = drawn(start, end, (4 * side, 4 * side), self.cell_px)
        dense = self.mask_downscaling(masks[:, None].to(self.no_mask_embed.weight.dtype)) - self.far()[..., None]
        steps = torch.arange(side, device=clicks.device)
        column, row = (first[:, axis, None].long() + steps for axis in (0, 1))
        cells = (row[:, :, None] * columns + column[:, None, :]).flatten(1)
        places = cells[..., None] == torch.arange(rows * columns, device=clicks.device)
        return dense.flatten(2).mT, places.to(dense.dtype)


def prompt_encoder(config: DecoderConfig, **sizes: Any) -> PromptEncoder:
    """segment-anything's prompt encoder, or the one that draws."""
    if config.draws_boxes or config.draws_points:
        return DrawingPromptEncoder(config, **sizes)
    return PromptEncoder(**sizes)


def drawn_clicks(encoder: PromptEncoder) -> DrawingPromptEncoder | None:
    """The prompt encoder, if it draws clicks."""
    return encoder if isinstance(encoder, DrawingPromptEncoder) and encoder.draws_points else None


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


def around(clicks: Float[Tensor, "*n 2"]) -> tuple[Float[Tensor, "*n 2"], Float[Tensor, "*n 2"]]:
    """The corners of the boxes that clicks, (x, y) of a pixel, are drawn as."""
    # a pixel's centre is half a pixel further than its number
    return clicks + (0.5 - CLICK_REACH_PX), clicks + (0.5 + CLICK_REACH_PX)
