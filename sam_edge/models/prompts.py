"""Prompts as tensors: what every runtime's decoder takes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_edge.errors import PromptError

FOREGROUND, BACKGROUND, BOX_START, BOX_END, NOT_A_POINT, ABSENT = 1, 0, 2, 3, -1, -2


@dataclass(frozen=True)
class Prompts:
    """B images x N prompt sets x P points, in the resized frame's pixels (x, y).

    Labels: 1 foreground, 0 background, 2 and 3 box corners, -1 segment-anything's "not a point" (its decoder
    attends to it), -2 absent (masked out of attention, so padded sets give what each gives alone).
    """

    coords: Float[Tensor, "b n p 2"]
    labels: Int[Tensor, "b n p"]
    masks: Float[Tensor, "b n 1 h w"] | None = None
    """Low-resolution logits of an earlier round, or None."""

    def __post_init__(self) -> None:
        if self.coords.ndim != 4 or self.coords.shape[-1] != 2 or self.labels.shape != self.coords.shape[:3]:
            raise PromptError(
                "prompts need coords B x N x P x 2 and labels B x N x P, "
                f"got {tuple(self.coords.shape)} and {tuple(self.labels.shape)}."
            )

    @classmethod
    def build(
        cls,
        points: Float[Tensor, "b n p 2"] | None = None,
        labels: Int[Tensor, "b n p"] | None = None,
        boxes: Float[Tensor, "b n 4"] | None = None,
        masks: Float[Tensor, "b n 1 h w"] | None = None,
    ) -> "Prompts":
        """Points and XYXY boxes as one sequence, in segment-anything's order.

        Like its prompt encoder, a "not a point" follows the points when there is no box.

        Raises:
            PromptError: neither points nor boxes, or points without labels.
        """
        if (points is None) != (labels is None):
            raise PromptError("points and their labels come together: give both or neither.")
        coords_parts, label_parts = [], []
        if points is not None and labels is not None:
            coords_parts.append(points)
            label_parts.append(labels)
            if boxes is None:
                coords_parts.append(points.new_zeros(*points.shape[:2], 1, 2))
                label_parts.append(labels.new_full((*labels.shape[:2], 1), NOT_A_POINT))
        if boxes is not None:
            coords_parts.append(boxes.unflatten(-1, (2, 2)))
            corners = torch.tensor([BOX_START, BOX_END], device=boxes.device)
            label_parts.append(corners.expand(*boxes.shape[:2], 2))
        if not coords_parts:
            if masks is None:
                raise PromptError("a prompt needs at least one point, box or mask.")
            coords_parts.append(masks.new_zeros(*masks.shape[:2], 1, 2))
            label_parts.append(torch.full((*masks.shape[:2], 1), ABSENT, device=masks.device))
        return cls(torch.cat(coords_parts, 2), torch.cat([part.long() for part in label_parts], 2), masks)

    @property
    def boxed(self) -> bool:
        """Whether any set has a box."""
        return bool((self.labels == BOX_START).any())

    @property
    def clicked(self) -> bool:
        """Whether every set starts with a point of the foreground, and none has a box."""
        return bool((self.labels[..., 0] == FOREGROUND).all()) and not self.boxed

    @property
    def single_points(self) -> Bool[Tensor, "b n"]:
        """Sets of one foreground point and nothing else: what may mean a thing, its part or its whole."""
        alone = ((self.labels >= BACKGROUND).sum(-1) == 1) & (self.labels == FOREGROUND).any(-1)
        return alone if self.masks is None else torch.zeros_like(alone)

    def part(self, sets: slice, images: slice = slice(None)) -> "Prompts":
        """Some of the sets of some of the images."""
        masks = None if self.masks is None else self.masks[images, sets]
        return Prompts(self.coords[images, sets], self.labels[images, sets], masks)

    def to(self, device: torch.device | str) -> "Prompts":
        """The same prompts on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return Prompts(self.coords.to(device), self.labels.to(device), masks)
