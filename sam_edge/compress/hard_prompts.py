"""Online hard prompt sampling (TinySAM, eq. 6 and 7): prompts from where the network itself is still wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sam_edge.errors import TrainingError
from sam_edge.segment.prompts import BACKGROUND, FOREGROUND, Prompts
from sam_edge.training.prompting import jitter_boxes

Segment = Callable[[Prompts], Bool[Tensor, "b n h w"]]
"""The network's masks M_i for prompts P_i, without gradient."""


@dataclass(frozen=True)
class HardPromptOptions:
    """How the prompts of a step are found."""

    prompts: int = 64
    """Prompted masks per view; masks repeat, with other prompts, where a view has fewer."""
    box_share: float = 0.5
    """Share of prompts that are boxes: they have no harder rounds, unless points `accumulate` beside them. The others
    are points, the first inside the mask."""
    max_rounds: int = 9
    """Each step's rounds are drawn from 0 to this; 0 leaves random prompts."""
    accumulate: bool = False
    """Keep the points of earlier rounds, or the box, beside the new one; by eq. 7 the newest stands alone."""
    negatives: bool = False
    """Also draw background points, from false positives; needs `accumulate`."""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.max_rounds < 0 or not 0 <= self.box_share <= 1:
            raise TrainingError("prompts must be at least 1, rounds at least 0, and the share of boxes within [0, 1].")
        if self.negatives and not self.accumulate:
            raise TrainingError("a background point alone names no object: negatives need accumulate.")


def draw_rounds(options: HardPromptOptions, generator: torch.Generator) -> int:
    """The one i of a step, uniform over 0..max_rounds: it keeps the difficulty in a range."""
    return int(torch.randint(options.max_rounds + 1, (), generator=generator))


def hard_prompts(
    masks: Bool[Tensor, "b n h w"],
    boxes: Float[Tensor, "b n 4"],
    extent: Float[Tensor, "b 2"],
    image_size: int,
    segment: Segment,
    options: HardPromptOptions,
    generator: torch.Generator,
) -> Prompts:
    """P_i for an i drawn by `generator`, which lives on the CPU; boxes first, then points.

    Args:
        masks: M_gt in random order, on the device of the network.
        segment: called i times, with the prompts that have another round.
        boxes: tight boxes XYXY, in pixels of a view of `image_size`.
        extent: width and height of what is picture, in pixels.
    """
    device, count = masks.device, masks.shape[1]
    rounds = draw_rounds(options, generator)
    boxed = int(count * options.box_share + torch.rand((), generator=generator))
    corners = jitter_boxes(boxes[:, :boxed].cpu(), extent.cpu()[:, None].expand(-1, boxed, 2), generator).to(device)

    def draw(region: Bool[Tensor, "b n h w"]) -> Float[Tensor, "b n"]:
        return torch.rand(region.shape[:2], generator=generator).to(device)

    pointed = masks[:, boxed:]
    points = to_pixels(draw_cells(pointed, draw(pointed)), masks.shape[-1], image_size)
    prompts = boxes_and_points(corners, points)
    # a box alone has nothing to add: only what goes on is segmented
    done = 0 if options.accumulate else boxed
    masks = masks[:, done:]
    for _ in range(rounds if done < count else 0):
        cells, labels = next_points(segment(prompts.part(slice(done, None))), masks, draw(masks), options.negatives)
        points = to_pixels(cells, masks.shape[-1], image_size)
        prompts = with_points(prompts, points, labels) if options.accumulate else boxes_and_points(corners, points)
    return prompts


def next_points(
    predicted: Bool[Tensor, "*n h w"], wanted: Bool[Tensor, "*n h w"], uniform: Float[Tensor, "*n"], negatives: bool
) -> tuple[Int[Tensor, "*n 2"], Int[Tensor, "*n"]]:
    """P_(i+1) in M_gt - M_i (eq. 6), as cells (x, y) and labels; inside M_gt where nothing is missed.

    With `negatives` it is in the whole difference of the two: background where M_i takes too much.
    """
    error = predicted ^ wanted if negatives else wanted & ~predicted
    flawless = ~error.flatten(-2).any(-1)
    cells = draw_cells(torch.where(flawless[..., None, None], wanted, error), uniform)
    inside = wanted.flatten(-2).gather(-1, (cells[..., 1] * wanted.shape[-1] + cells[..., 0])[..., None])[..., 0]
    return cells, torch.where(inside, FOREGROUND, BACKGROUND)


def draw_cells(region: Bool[Tensor, "*n h w"], uniform: Float[Tensor, "*n"]) -> Int[Tensor, "*n 2"]:
    """The cell (x, y) at `uniform`, in [0, 1), of the way through each region; of the whole grid where it is empty."""
    flat = region.flatten(-2)
    flat = flat | ~flat.any(-1, keepdim=True)
    # the counts are whole numbers: the same draw on every device
    passed = flat.cumsum(-1, dtype=torch.int32)
    target = (uniform.double() * passed[..., -1]).int() + 1
    index = torch.searchsorted(passed, target[..., None])[..., 0]
    return torch.stack([index % region.shape[-1], index // region.shape[-1]], -1)


def to_pixels(cells: Int[Tensor, "*n 2"], mask_size: int, image_size: int) -> Float[Tensor, "*n 2"]:
    """Centres of mask cells, in pixels of the view."""
    return (cells.float() + 0.5) * (image_size / mask_size) - 0.5


def boxes_and_points(boxes: Float[Tensor, "b n 4"], points: Float[Tensor, "b m 2"]) -> Prompts:
    """Boxes by their two corners, then points, each with segment-anything's "not a point"."""
    labels = torch.full((*points.shape[:2], 1), FOREGROUND, device=points.device)
    corners, alone = Prompts.build(boxes=boxes), Prompts.build(points[:, :, None], labels)
    return Prompts(torch.cat([corners.coords, alone.coords], 1), torch.cat([corners.labels, alone.labels], 1))


def with_points(prompts: Prompts, points: Float[Tensor, "b n 2"], labels: Int[Tensor, "b n"]) -> Prompts:
    """One more point in every set."""
    return Prompts(
        torch.cat([prompts.coords, points[:, :, None]], 2), torch.cat([prompts.labels, labels[..., None]], 2)
    )
