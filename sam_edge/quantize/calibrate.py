"""Ranges of every layer's input and output over calibration pictures."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from sam_edge.models.prompts import Prompts
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.frame import Frame, to_pixels


@dataclass
class Ranges:
    """Extremes of what went into and came out of a layer."""

    input_low: float = float("inf")
    input_high: float = float("-inf")
    output_low: float = float("inf")
    output_high: float = float("-inf")

    def see(self, x: Tensor, y: Tensor) -> None:
        """Widen the ranges to hold an input and its output."""
        self.input_low, self.input_high = _widen(self.input_low, self.input_high, x)
        self.output_low, self.output_high = _widen(self.output_low, self.output_high, y)


def _widen(low: float, high: float, values: Tensor) -> tuple[float, float]:
    smallest, largest = torch.aminmax(values.detach())
    return min(low, smallest.item()), max(high, largest.item())


@contextmanager
def watched(layers: dict[str, nn.Module]) -> Iterator[dict[str, Ranges]]:
    """Record the ranges of `layers` while the block runs."""
    ranges = {name: Ranges() for name in layers}

    def watcher(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: ranges[name].see(inputs[0], output)

    handles = [module.register_forward_hook(watcher(name)) for name, module in layers.items()]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_on(model: EdgeSam, images: Iterable[UInt8[np.ndarray, "h w 3"]], *, prompts_per_image: int, seed: int) -> int:
    """Encode pictures and decode random points and boxes on each; returns how many pictures there were.

    Seeing both kinds of prompt, and low-resolution masks fed back, is what makes the decoder's ranges hold later.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    count = 0
    for image in images:
        pixels, frame = to_pixels(image, model.config)
        embeddings = model.encode(pixels.to(device))
        for prompts in random_prompts(frame, prompts_per_image, generator):
            logits, _ = model.decoder.decode(embeddings, prompts.to(device))
        again = Prompts(prompts.coords, prompts.labels, logits[:, :, :1].cpu())
        model.decoder.decode(embeddings, again.to(device))
        count += 1
    return count


def random_prompts(frame: Frame, count: int, generator: torch.Generator) -> tuple[Prompts, Prompts]:
    """`count` single points and `count` boxes, uniform over the picture's part of the model's frame."""
    extent = torch.tensor([frame.input_size[1], frame.input_size[0]], dtype=torch.float32)
    points = torch.rand(1, count, 1, 2, generator=generator) * extent
    corners = torch.rand(1, count, 2, 2, generator=generator) * extent
    boxes = torch.cat([corners.amin(2), corners.amax(2)], -1)
    labels = torch.ones(1, count, 1, dtype=torch.long)
    return Prompts.build(points, labels), Prompts.build(boxes=boxes)
