"""One walk over the calibration pictures: every layer's extremes, some rows of its input, and the task's curvature.

Memory is bounded: a picture's rows are drawn by chance, a layer keeps at most 32 MB, and nothing else outlives its
picture. Prompts are decoded a few at a time, each with a backward pass of its own as far as the image embedding; the
encoder's blocks are computed once more in the backward pass, one at a time (Chen et al. 2016), and watched only then.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sam_edge.models.attention import AttentionProducts
from sam_edge.models.prompts import on_device
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.samples import Chance, Seen, watch_attention, watch_layer
from sam_edge.quantize.task_loss import draw, task_loss
from sam_edge.segment.frame import Frame, to_pixels
from sam_edge.segment.prompts import Prompts

PROMPTS_AT_ONCE = 4
"""Prompt sets decoded in one go: the backward pass keeps about 0.2 GB of each at SAM's size."""
CLAMPS = (nn.ReLU, nn.Hardtanh)
"""Activations, ReLU6 among them, that keep what lies within bounds as it is."""
FEWEST_ROWS = 8
"""Rows kept of a call, at least."""
SMALLEST_SIDE = 1 / 128
"""Shortest side of a random box, as a share of the picture's. Boxes of a few pixels take the mask tokens farthest:
without any, from 1 / 32 on, the last layers of nano's hypernetworks were given ranges of half of what boxes in photos
need, and logits by boxes were off by 0.07 of their norm in 8 bits (0.01 with them)."""


@dataclass(frozen=True)
class Walk:
    """How calibration pictures are walked over."""

    rows: int = 64
    """Rows that each of the encoder's layers keeps of each picture, and half as many the decoder's of a few prompts."""
    prompts_per_image: int = 8
    """Points, as many boxes, and as many points again with a mask, prompted on each picture."""
    seed: int = 0
    """Seed of prompts, of rows and of outcomes."""


@dataclass
class Watch:
    """How many rows of a call layers keep, by which seed, and whether calls without gradients count."""

    seed: int
    rows: int
    gradient: bool


@contextmanager
def watched(
    model: nn.Module, layers: dict[str, nn.Module], watch: Watch, watch_as: dict[str, nn.Module] | None = None
) -> Iterator[dict[str, Seen]]:
    """Record what `layers` of `model` see while the block runs; `watch_as` names the float layers that quantized ones
    replace."""
    seen = {name: Seen() for name in layers}
    latest: tuple[str, Tensor] | None = None

    def watcher(name: str) -> Callable[..., None]:
        stands_for = (watch_as or layers)[name]
        # of its own, since layers may be visited in any order
        generator = torch.Generator().manual_seed(watch.seed + crc32(name.encode()))

        def see(module: nn.Module, given: tuple, out: Tensor) -> None:
            nonlocal latest
            latest = name, out
            if watch.gradient and not torch.is_grad_enabled():
                # this block will be computed again
                return
            chance = Chance(generator, watch.rows)
            if isinstance(stands_for, AttentionProducts):
                watch_attention(seen[name], given, out, chance)
            else:
                watch_layer(seen[name], stands_for, given[0], out, chance)

        return see

    def see_clamp(module: nn.Module, given: tuple) -> None:
        # what comes right behind a layer takes its very tensor
        if latest is not None and given[0] is latest[1]:
            seen[latest[0]].clamp = (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0.0, inf)

    handles = [module.register_forward_hook(watcher(name)) for name, module in layers.items()]
    handles += [each.register_forward_pre_hook(see_clamp) for each in model.modules() if isinstance(each, CLAMPS)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def block_by_block(encoder: nn.Module) -> Iterator[None]:
    """Keep only the inputs of a ViT's blocks for the backward pass."""
    blocks = list(getattr(encoder, "blocks", ()))
    for block in blocks:
        # the reentrant form, whose first pass takes no gradients
        block.forward = partial(checkpoint, block.forward, use_reentrant=True)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@dataclass(frozen=True)
class Observer:
    """A model that is walked through, and where its gradients come from."""

    model: EdgeSam
    gradient: bool
    """Whether rows shall carry gradients."""
    reference: EdgeSam | None = None
    """None for gradients of outcomes drawn from the model's own predictions (Fisher); else those of the task loss
    between the reference's answers and this model's.

    The first is the default: in few bits the gradients of a model that is quantized already lead to worse grids.
    """

    def observe(
        self,
        layers: dict[str, nn.Module],
        images: Iterable[UInt8[np.ndarray, "h w 3"]],
        walk: Walk,
        *,
        watch_as: dict[str, nn.Module] | None = None,
        on_image: Callable[[], None] | None = None,
    ) -> dict[str, Seen]:
        """Walk over pictures; returns what each layer saw.

        The same walk takes the same prompts and rows through every model.
        """
        prompting, outcomes = (torch.Generator().manual_seed(seed) for seed in (walk.seed, walk.seed + 1))
        watch = Watch(walk.seed + 2, walk.rows, self.gradient)
        with (
            watched(self.model, layers, watch, watch_as) as seen,
            self._learning(),
            torch.set_grad_enabled(self.gradient),
        ):
            for image in images:
                arrays, frame = to_pixels(image, self.model.config)
                watch.rows = walk.rows
                device = next(self.model.parameters()).device
                pixels = torch.from_numpy(arrays).to(device).requires_grad_(self.gradient)
                with block_by_block(self.model.image_encoder) if self.gradient else nullcontext():
                    embeddings = self.model.encode(pixels)
                watch.rows = max(FEWEST_ROWS, walk.rows // 2)
                leaf = embeddings.detach().requires_grad_(self.gradient)
                with torch.no_grad():
                    wanted = self.reference.encode(pixels) if self.reference is not None else None
                for prompts in random_prompts(frame, walk.prompts_per_image, prompting):
                    self._decode(leaf, wanted, prompts, outcomes)
                watch.rows = walk.rows
                if self.gradient:
                    embeddings.backward(leaf.grad)
                if on_image is not None:
                    on_image()
        return seen

    def _decode(self, leaf: Tensor, wanted: Tensor | None, prompts: Prompts, outcomes: torch.Generator) -> None:
        """Decode prompts a few at a time; points once more, each with its own mask as a prompt."""
        for start in range(0, prompts.labels.shape[1], PROMPTS_AT_ONCE):
            chunk = on_device(prompts.part(slice(start, start + PROMPTS_AT_ONCE)), leaf.device)
            logits = self._once(leaf, wanted, chunk, outcomes)
            if (chunk.labels == 1).any():
                self._once(leaf, wanted, Prompts(chunk.coords, chunk.labels, logits[:, :, :1]), outcomes)

    def _once(
        self, leaf: Tensor, wanted: Tensor | None, prompts: Prompts, outcomes: torch.Generator
    ) -> Float[Tensor, "b n 4 h w"]:
        logits, iou = self.model.decoder.decode(leaf, prompts)
        if self.gradient and self.reference is None:
            draw(logits, iou, outcomes).backward()
        elif self.gradient and self.reference is not None and wanted is not None:
            with torch.no_grad():
                right = self.reference.decoder.decode(wanted, prompts)
            task_loss(logits, iou, *right).backward()
        return logits.detach()

    @contextmanager
    def _learning(self) -> Iterator[None]:
        """Only what gradients must start from learns: tokens and prompts, on which the first self-attention depends."""
        roots = {id(self.model.mask_decoder.mask_tokens.weight), *map(id, self.model.prompt_encoder.parameters())}
        before = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        try:
            for parameter, _ in before:
                parameter.requires_grad_(self.gradient and id(parameter) in roots)
            yield
        finally:
            for parameter, learns in before:
                parameter.requires_grad_(learns)
                parameter.grad = None


def random_prompts(frame: Frame, count: int, generator: torch.Generator) -> tuple[Prompts, Prompts]:
    """`count` points, uniform over the picture's part of the model's frame, and `count` boxes of any size.

    Boxes' sides are log-uniform between `SMALLEST_SIDE` and all of the picture, as sizes of things in photos roughly
    are: corners drawn uniformly would make nearly every box large, and scales that clip what small ones need.
    """
    extent = torch.tensor([frame.input_size[1], frame.input_size[0]], dtype=torch.float32)
    points = torch.rand(1, count, 1, 2, generator=generator) * extent
    sides = extent * SMALLEST_SIDE ** torch.rand(1, count, 2, generator=generator)
    corners = torch.rand(1, count, 2, generator=generator) * (extent - sides)
    labels = torch.ones(1, count, 1, dtype=torch.long)
    return Prompts.build(points, labels), Prompts.build(boxes=torch.cat([corners, corners + sides], -1))
