"""Promptable segmentation as a training method: points, boxes and masks over several rounds.

What is random about an example depends on its number alone, so that the same examples get the same prompts however
they are spread over processes and accumulated batches.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.errors import TrainingError
from sam_edge.models.canvas import CanvasWindow, Place, window_side
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.prompts import BOX_END, BOX_START, FOREGROUND, NOT_A_POINT, Prompts
from sam_edge.training.features import FeatureLoss
from sam_edge.training.losses import brought_to, segmentation_loss
from sam_edge.training.prompting import correction, jitter_boxes, random_cells, seeded
from sam_edge.training.stream import ViewBatch, first_example

OF_EXAMPLE, OF_STEP = 0, 1
"""What a random number belongs to."""


@dataclass(frozen=True)
class InteractiveOptions:
    """How prompts are drawn."""

    box_share: float = 0.5
    """Share of first prompts that are boxes; the others are points."""
    box_jitter: float = 0.1
    """Standard deviation of a box's corners, as a share of its sides, for half of the boxes; the others are tight."""
    interior_share: float = 0.5
    """Share of first points that are the mask's most interior one; the others are drawn from all of it."""
    rounds: int = 3
    """Rounds in an interactive step; later rounds add a point from the error and the previous mask."""
    interactive_share: float = 0.25
    """Share of steps that go on past the first round."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise TrainingError(f"rounds must be at least 1, got {self.rounds}.")
        for name in ("box_share", "box_jitter", "interior_share", "interactive_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must be in [0, 1], got {getattr(self, name)}.")


class InteractiveSegmentation:
    """SAM's interactive training: `loss(batch, step)` for the training loop."""

    def __init__(self, model: EdgeSam, options: InteractiveOptions, seed: int, window: int = 0) -> None:
        """`window`: side in pixels of the views, where they are random windows of the model's canvas; 0: all of it."""
        self.model = model
        self.options = options
        self.seed = seed
        self.side = window_side(model, window) if window else 0
        self.settings: dict[str, Any] = {}
        self.features: FeatureLoss | None = None
        """A classifier's features, learned beside the labels."""

    def __call__(self, batch: ViewBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The step's loss, averaged over its rounds, with what `decode` adds, and the first round's parts."""
        model, options = self.model, self.options
        first = first_example(step, len(batch.image))
        generators = [seeded(self.seed, OF_EXAMPLE, number) for number in range(first, first + len(batch.image))]
        device = next(model.parameters()).device
        # the same in every process, or they would wait for each other
        of_step = seeded(self.seed, OF_STEP, step)
        interactive = torch.rand((), generator=of_step) < options.interactive_share
        sees = self._window(of_step) if self.side else model
        image = batch.image.to(device).float()
        embeddings = sees.encode((image - model.pixel_mean) / model.pixel_std)
        target = batch.masks.float() / 255
        coords, labels = _joined(self._first_prompts(batch.example(i), g) for i, g in enumerate(generators))
        wanted = target.to(device)
        masks: Tensor | None = None
        losses: list[Tensor] = []
        beside: dict[str, Tensor] = {} if self.features is None else {"features": self.features(model, image)}
        report: dict[str, Tensor] = {}
        for number in range(options.rounds if interactive else 1):
            prompts = Prompts(coords.to(device), labels.to(device), masks)
            logits, iou, taught = self.decode(sees, batch, embeddings, prompts)
            loss, parts = segmentation_loss(logits.float(), iou.float(), wanted, prompts.single_points)
            losses.append(loss)
            beside |= taught
            report = report or parts | {name: value.detach() for name, value in beside.items()}
            if number + 1 < options.rounds and interactive:
                masks = logits[:, :, 0:1].detach().float()
                predicted = brought_to(masks[:, :, 0], (wanted.shape[-2], wanted.shape[-1])).cpu() > 0
                cells, new_labels = _joined(
                    correction(predicted[i : i + 1], target[i : i + 1] > 0.5, g) for i, g in enumerate(generators)
                )
                coords = torch.cat([coords, self._to_pixels(cells, batch)[:, :, None]], 2)
                labels = torch.cat([labels, new_labels[:, :, None]], 2)
        return torch.stack([torch.stack(losses).mean(), *beside.values()]).sum(), report

    def decode(
        self, sees: EdgeSam | CanvasWindow, batch: ViewBatch, embeddings: Float[Tensor, "b c g g"], prompts: Prompts
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"], dict[str, Float[Tensor, ""]]]:
        """A round's logits, its predicted IoU, and losses by name that a subclass adds to the labels'."""
        return *sees.decoder.decode(embeddings, prompts), {}

    def _window(self, generator: torch.Generator) -> CanvasWindow:
        free = self.model.config.grid - self.side + 1
        row, column = torch.randint(free, (2,), generator=generator).tolist()
        return CanvasWindow(self.model, Place(row, column, self.side))

    def _first_prompts(self, batch: ViewBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two slots per set: a box's corners, or a point and segment-anything's "not a point"."""
        options, shape = self.options, batch.masks.shape[:2]
        inside = batch.masks > 127
        # no box says where nothing is
        on_nothing = ~inside.flatten(2).any(-1)
        cells = random_cells(inside, generator)
        interior = (torch.rand(shape, generator=generator) < options.interior_share) | on_nothing
        points = torch.where(interior[..., None], batch.interior, self._to_pixels(cells, batch))
        extent = batch.extent[:, None].expand(*shape, 2)
        boxes = jitter_boxes(batch.boxes, extent, generator, options.box_jitter)
        boxed = (torch.rand(shape, generator=generator) < options.box_share) | batch.boxes_only[:, None]
        boxed &= ~on_nothing
        as_points = torch.stack([points, torch.zeros_like(points)], 2)
        coords = torch.where(boxed[..., None, None], boxes.unflatten(-1, (2, 2)), as_points)
        labels = torch.where(
            boxed[..., None], torch.tensor([BOX_START, BOX_END]), torch.tensor([FOREGROUND, NOT_A_POINT])
        )
        return coords, labels

    @staticmethod
    def _to_pixels(cells: Tensor, batch: ViewBatch) -> Float[Tensor, "b k 2"]:
        return (cells.float() + 0.5) * (batch.image.shape[-1] / batch.masks.shape[-1]) - 0.5


def _joined(drawn: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """What was drawn for each example, as a batch."""
    first, second = zip(*drawn, strict=True)
    return torch.cat(first), torch.cat(second)
