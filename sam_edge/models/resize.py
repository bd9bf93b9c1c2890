"""The same SAM at another image size: resolution as an axis of compression, and cheap first stages of training."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sam_edge.models.sam import EdgeSam


def resized(model: EdgeSam, image_size: int) -> EdgeSam:
    """A copy of a SAM for `image_size`: positions interpolated, every other weight as it is.

    Position embeddings are resampled bicubically; relative positions of global blocks linearly, as
    segment-anything itself does when a table does not fit. Windowed blocks keep their tables.

    Raises:
        ModelError: a size that the patches do not divide.
    """
    return _at_size(model, image_size, _resample_table)


def extended(model: EdgeSam, image_size: int) -> EdgeSam:
    """A copy of a SAM that sees more at the same scale: what it knows of an object in pixels holds wherever it lies.

    Relative positions keep their distances in tokens (the outermost is repeated for those beyond), and the
    positional encoding of prompts its wavelengths in pixels. So training can begin with small crops.

    Raises:
        ModelError: a size that the patches do not divide.
    """
    other = _at_size(model, image_size, _extend_table)
    # coordinates are relative to the image
    other.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix *= image_size / model.config.image_size
    return other


def _at_size(model: EdgeSam, image_size: int, fit_table: Callable[[Tensor, torch.Size], Tensor]) -> EdgeSam:
    other = EdgeSam(model.config.replace(image_size=image_size))
    state = model.state_dict()
    for name, wanted in other.state_dict().items():
        if state[name].shape != wanted.shape:
            fit = _resample_grid if name.endswith("pos_embed") else fit_table
            state[name] = fit(state[name], wanted.shape)
    other.load_state_dict(state)
    return other.to(next(model.parameters()).device)


def _resample_grid(grid: Float[Tensor, "1 g g c"], shape: torch.Size) -> Float[Tensor, "1 h h c"]:
    size = (shape[1], shape[2])
    return F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)


def _resample_table(table: Float[Tensor, "rows d"], shape: torch.Size) -> Float[Tensor, "rows2 d"]:
    return F.interpolate(table.T[None], shape[0], mode="linear")[0].T


def _extend_table(table: Float[Tensor, "rows d"], shape: torch.Size) -> Float[Tensor, "rows2 d"]:
    beyond = (shape[0] - len(table)) // 2
    return F.pad(table.T[None], (beyond, beyond), mode="replicate")[0].T
