"""A square part of a SAM's canvas as a SAM of its own: the same weights and positions over fewer tokens.

A training step on a window of half the side costs a quarter. Position embeddings, positional encodings and relative
positions are those of the window's place, not resized to it, so what is learned there holds on the whole canvas.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from sam_edge.errors import ModelError
from sam_edge.models.decoder import PromptableDecoder
from sam_edge.models.sam import EdgeSam


@dataclass(frozen=True)
class Place:
    """Which tokens of the canvas a window shows."""

    row: int
    column: int
    side: int

    @property
    def rows(self) -> slice:
        """Rows of the token grid."""
        return slice(self.row, self.row + self.side)

    @property
    def columns(self) -> slice:
        """Columns of the token grid."""
        return slice(self.column, self.column + self.side)


def window_side(model: EdgeSam, pixels: int) -> int:
    """Side in tokens of a window of `pixels`.

    Raises:
        ModelError: no size that this model can be seen through.
    """
    patch, size = model.config.patch_size, model.config.image_size
    if model.config.arch == "tiny_vit":
        raise ModelError("TinyViT has no positions to look up: train it on views of its own size.")
    if model.config.backbone is not None:
        patch = max(patch, *model.config.backbone.strides)
    if pixels % patch or not patch <= pixels <= size:
        raise ModelError(f"a window of {pixels} px: choose a multiple of {patch} px of at most {size} px.")
    return pixels // model.config.patch_size


class CanvasWindow:
    """What a model makes of a window of its canvas; same methods, pixels and coordinates of the window."""

    def __init__(self, model: EdgeSam, place: Place) -> None:
        self.model = model
        self.place = place
        self.decoder = _WindowDecoder(model, place)

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embedding of a normalised window."""
        embedding: Tensor = functional_call(self.model.image_encoder, self._positions(), (pixels,))
        return embedding

    def _positions(self) -> dict[str, Tensor]:
        """The encoder's parameters that are tied to places, as the window has them."""
        place, grid = self.place, self.model.config.grid
        found = {}
        for name, value in self.model.image_encoder.named_parameters():
            if name == "pos_embed":
                found[name] = value[:, place.rows, place.columns]
            elif "rel_pos" in name and len(value) == 2 * grid - 1:
                # of a table over the whole canvas, the smaller distances
                found[name] = value[grid - place.side : grid + place.side - 1]
        return found


class _WindowDecoder(PromptableDecoder):
    def __init__(self, model: EdgeSam, place: Place) -> None:
        super().__init__(model.prompt_encoder, model.mask_decoder)
        self.place = place
        self.grid = (place.side, place.side)
        self.corner = torch.tensor([place.column, place.row]) * float(model.config.patch_size)

    def positions(self) -> Float[Tensor, "c g g"]:
        return super().positions()[:, self.place.rows, self.place.columns]

    def _embed_points(self, coords: Float[Tensor, "b n p 2"], labels: Int[Tensor, "b n p"]) -> Float[Tensor, "b n p c"]:
        return super()._embed_points(coords + self.corner.to(coords), labels)
