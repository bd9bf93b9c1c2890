"""Prompts: what every runtime's decoder takes, as arrays.

NumPy's on a device; where models are trained, the same class holds torch's tensors. What is written here is common to
both libraries (the array API standard's names), and neither is imported for the other.
"""

import sys
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int

from sam_edge.errors import PromptError
from sam_edge.segment.config import DecoderConfig

FOREGROUND, BACKGROUND, BOX_START, BOX_END, NOT_A_POINT, ABSENT = 1, 0, 2, 3, -1, -2


@dataclass(frozen=True)
class Prompts:
    """B images x N prompt sets x P points, in the resized frame's pixels (x, y).

    Labels: 1 foreground, 0 background, 2 and 3 box corners, -1 segment-anything's "not a point" (its decoder
    attends to it), -2 absent (masked out of attention, so padded sets give what each gives alone).
    """

    coords: Float[Any, "b n p 2"]
    labels: Int[Any, "b n p"]
    masks: Float[Any, "b n 1 h w"] | None = None
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
        points: Float[Any, "b n p 2"] | None = None,
        labels: Int[Any, "b n p"] | None = None,
        boxes: Float[Any, "b n 4"] | None = None,
        masks: Float[Any, "b n 1 h w"] | None = None,
    ) -> "Prompts":
        """Points and XYXY boxes as one sequence, in segment-anything's order.

        Like its prompt encoder, a "not a point" follows the points when there is no box.

        Raises:
            PromptError: neither points, boxes nor masks, or points without labels.
        """
        if (points is None) != (labels is None):
            raise PromptError("points and their labels come together: give both or neither.")
        given = next((part for part in (points, boxes, masks) if part is not None), None)
        if given is None:
            raise PromptError("a prompt needs at least one point, box or mask.")
        xp = _library(given)
        coords_parts, label_parts = [], []
        if points is not None and labels is not None:
            coords_parts.append(points)
            label_parts.append(labels)
            if boxes is None:
                # one slot more, whether or not there is a first to copy
                coords_parts.append(_zeros(xp, points, (*points.shape[:2], 1, 2)))
                label_parts.append(_zeros(xp, labels, (*labels.shape[:2], 1)) + NOT_A_POINT)
        if boxes is not None:
            coords_parts.append(boxes.reshape(*boxes.shape[:2], 2, 2))
            corners = xp.asarray([BOX_START, BOX_END], device=boxes.device)
            label_parts.append(xp.broadcast_to(corners, (*boxes.shape[:2], 2)))
        if not coords_parts:
            # a mask alone
            coords_parts.append(_zeros(xp, given, (*given.shape[:2], 1, 2)))
            label_parts.append(xp.full((*given.shape[:2], 1), ABSENT, device=given.device))
        label_parts = [xp.asarray(part, dtype=xp.int64) for part in label_parts]
        return cls(xp.concat(coords_parts, 2), xp.concat(label_parts, 2), masks)

    @property
    def boxed(self) -> bool:
        """Whether any set has a box."""
        return bool((self.labels == BOX_START).any())

    @property
    def clicked(self) -> bool:
        """Whether every set starts with a point of the foreground, and none has a box."""
        return bool((self.labels[..., 0] == FOREGROUND).all()) and not self.boxed

    @property
    def single_points(self) -> Bool[Any, "b n"]:
        """Sets of one foreground point and nothing else: what may mean a thing, its part or its whole."""
        alone = ((self.labels >= BACKGROUND).sum(-1) == 1) & (self.labels == FOREGROUND).any(-1)
        return alone if self.masks is None else alone & False

    def part(self, sets: slice, images: slice = slice(None)) -> "Prompts":
        """Some of the sets of some of the images."""
        masks = None if self.masks is None else self.masks[images, sets]
        return Prompts(self.coords[images, sets], self.labels[images, sets], masks)


def in_parts(prompts: Prompts, config: DecoderConfig) -> bool:
    """Whether the decoder in parts answers these prompts: no mask comes with them, or only clicks, all drawn."""
    if prompts.masks is not None or (config.draws_boxes and prompts.boxed):
        return False
    return not config.draws_points or prompts.clicked


def _library(array: Any) -> Any:
    """numpy, or torch where the array is a tensor: then it is loaded."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def _zeros(xp: Any, like: Any, shape: tuple[int, ...]) -> Any:
    return xp.zeros(shape, dtype=like.dtype, device=like.device)
