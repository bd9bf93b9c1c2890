"""The same SAM at another image size or on another grid: resolution as an axis of compression and of training."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sam_edge.models.sam import EdgeSam


def resized(model: EdgeSam, image_size: int, *, same_pixels: bool = False) -> EdgeSam:
    """A copy of a SAM for `image_size`: positions interpolated, every other weight as it is.

    Position embeddings are resampled bicubically; relative positions of global blocks linearly, as
    segment-anything itself does when a table does not fit. Windowed blocks keep their tables.

    Args:
        same_pixels: prompts' positions differ by as much per pixel as before, to tell small things apart on a
            larger canvas; else by as much per part of the picture, so that a student's tokens are its teacher's.

    Raises:
        ModelError: a size that the patches do not divide.
    """
    config = model.config.replace(image_size=image_size)
    other = EdgeSam(config)
    state = model.state_dict()
    for name, wanted in other.state_dict().items():
        if state[name].shape != wanted.shape:
            resample = _resample_grid if name.endswith("pos_embed") else _resample_table
            state[name] = resample(state[name], wanted.shape)
    if same_pixels:
        name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        state[name] = state[name] * (image_size / model.config.image_size)
    other.load_state_dict(state)
    return other.to(next(model.parameters()).device)


def regridded(model: EdgeSam, patch_size: int) -> EdgeSam:
    """A copy of a SAM behind a timm backbone, on a finer grid: its pyramid takes in the finest map there unpatched.

    A map that came by patches of `n` x `n` cells comes by each cell, with the sum of the patch's weights: the same
    function of a map that is even. All else is as it is, for positions are shares of the picture.

    Raises:
        ModelError: no such grid behind this backbone.
    """
    other = EdgeSam(model.config.replace(patch_size=patch_size))
    state = model.state_dict()
    for name, wanted in other.state_dict().items():
        if state[name].shape != wanted.shape:
            state[name] = state[name].sum((2, 3), keepdim=True)
    other.load_state_dict(state)
    return other.to(next(model.parameters()).device)


def _resample_grid(grid: Float[Tensor, "1 g g c"], shape: torch.Size) -> Float[Tensor, "1 h h c"]:
    size = (shape[1], shape[2])
    return F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True).permute(0, 2, 3, 1)


def _resample_table(table: Float[Tensor, "rows d"], shape: torch.Size) -> Float[Tensor, "rows2 d"]:
    return F.interpolate(table.T[None], shape[0], mode="linear")[0].T
