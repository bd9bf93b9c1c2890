"""Prompts drawn from target masks, as SAM's interactive training draws them (Segment Anything, appendix A)."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_edge.segment.prompts import BACKGROUND, FOREGROUND


def random_cells(region: Bool[Tensor, "*n h w"], generator: torch.Generator) -> Int[Tensor, "*n 2"]:
    """One cell (x, y) drawn uniformly from each region; from the whole grid where a region is empty."""
    flat = region.flatten(-2)
    flat = torch.where(flat.any(-1, keepdim=True), flat, torch.ones_like(flat))
    # the n-th of the region's cells, n uniform: torch.multinomial draws a number for every cell there is
    counted = flat.cumsum(-1, dtype=torch.int32)
    cells = counted[..., -1:]
    wanted = (torch.rand(cells.shape, generator=generator, dtype=torch.float64) * cells).int().clamp(max=cells - 1)
    index = torch.searchsorted(counted, wanted, right=True)[..., 0]
    width = region.shape[-1]
    return torch.stack([index % width, index // width], -1)


def jitter_boxes(
    boxes: Float[Tensor, "*n 4"], extent: Float[Tensor, "*n 2"], generator: torch.Generator, deviation: float = 0.1
) -> Float[Tensor, "*n 4"]:
    """Corners moved by a normal, at most 20 px, inside the picture; half stay tight.

    `deviation` is the normal's, as a share of the side; SAM's is a tenth.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).repeat_interleave(2, -1)
    noise = torch.randn(boxes.shape, generator=generator).clamp(-2, 2)
    moved = boxes + (noise * deviation * sides[..., [0, 2, 0, 2]]).clamp(-20, 20)
    limit = torch.cat([extent, extent], -1)
    moved = torch.minimum(moved.clamp(min=0), limit)
    tight = torch.rand(boxes.shape[:-1], generator=generator)[..., None] < 0.5
    return torch.where(tight, boxes, moved)


def correction(
    predicted: Bool[Tensor, "*n h w"], wanted: Bool[Tensor, "*n h w"], generator: torch.Generator
) -> tuple[Int[Tensor, "*n 2"], Int[Tensor, "*n"]]:
    """A point from the error region: foreground where something is missed, background where too much is taken.

    Without any error, a point inside the wanted mask.
    """
    error = predicted ^ wanted
    flawless = ~error.flatten(-2).any(-1)
    region = torch.where(flawless[..., None, None], wanted, error)
    cells = random_cells(region, generator)
    picked = wanted.flatten(-2).gather(-1, (cells[..., 1] * wanted.shape[-1] + cells[..., 0])[..., None])
    labels = torch.where(picked[..., 0], FOREGROUND, BACKGROUND)
    return cells, labels


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU that depends on all of the numbers."""
    # torch's looks at 32 bits of a seed only, so all numbers are mixed into those
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
