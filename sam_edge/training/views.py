"""One training example: a random square view of a labelled image, with the masks to be prompted for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sam_edge.data.rle import coverage
from sam_edge.data.sample import Annotation, LabelledImage
from sam_edge.training.colour import degrade, recolour

PASTED = 3
"""Most things pasted into one view."""
SMALLEST_ELLIPSE = 4.0
"""Side of the smallest box that an ellipse is asked for by, in pixels of the view."""


@dataclass(frozen=True)
class ViewOptions:
    """How a picture becomes a training example."""

    image_size: int = 256
    """Side of the view, in pixels."""
    mask_size: int = 128
    """Side of the target masks, in cells: the size of the decoder's logits."""
    prompts: int = 16
    """Masks prompted per view; masks repeat, with other prompts, where a picture has fewer."""
    min_zoom: float = 1.0
    """Smallest magnification of a view."""
    max_zoom: float = 3.0
    """The view's side is the picture's long side over a zoom drawn log-uniformly from `min_zoom` to this."""
    whole: float = 0.3
    """Share of views that show the whole picture, padded as SAM pads it."""
    colour: float = 0.2
    """Largest relative change of brightness, contrast and saturation, and largest turn of the hue in radians."""
    degrade: float = 0.0
    """Chance of each of: made grey, blurred, noisy."""
    copy_paste: float = 0.0
    """Share of views into which a few things of another picture are pasted (Ghiasi et al. 2021)."""
    ellipses: float = 0.0
    """Share of views whose targets are random ellipses instead of things: what a box is, before what is in it."""
    largest_ellipse: float = 0.0
    """Side in pixels of a square as large as the largest box that an ellipse is asked for by; 0: the view's own."""
    nothing: float = 0.0
    """Share of prompts that are points on nothing labelled, whose masks are empty."""
    min_cells: int = 12
    """Smallest visible area of a mask, in cells of `mask_size`."""
    small_first: float = 0.0
    """Masks are drawn by the area of their box to the power of minus this: 0 draws all alike, 0.5 draws a thing of half
    the side twice as often."""
    padding: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB of what is not picture: the pixel mean, since SAM pads with zeros after it has normalised."""


@dataclass(frozen=True)
class View:
    """A training example; coordinates are pixels of the view."""

    image: UInt8[np.ndarray, "3 s s"]
    masks: UInt8[np.ndarray, "k m m"]
    """Coverage of each cell, 0 to 255."""
    interior: Float[np.ndarray, "k 2"]
    """Each mask's most interior point, (x, y); of an empty mask the point that is on nothing labelled."""
    boxes: Float[np.ndarray, "k 4"]
    """Each mask's tight box, left and top edge, right and bottom edge: exact where all of the thing is in view, else
    to whole cells."""
    extent: Float[np.ndarray, "2"]
    """Width and height of the part that is picture, not padding."""
    boxes_only: bool = False
    """Whether only boxes say what is asked for: no point tells which ellipse around it is meant."""


@dataclass(frozen=True)
class Crop:
    """The part of a picture that a view shows, in pixels of the picture."""

    left: int
    top: int
    width: int
    height: int
    side: int
    """What the view's side stands for; more than width or height where the view is padded."""
    flip: bool

    @classmethod
    def draw(cls, image: UInt8[np.ndarray, "h w 3"], options: ViewOptions, rng: np.random.Generator) -> "Crop":
        """A random crop of a picture."""
        height, width = image.shape[:2]
        whole = rng.random() < options.whole
        zoom = 1.0 if whole else float(np.exp(rng.uniform(np.log(options.min_zoom), np.log(options.max_zoom))))
        side = max(round(max(height, width) / zoom), 16)
        left = 0 if whole else int(rng.integers(0, max(width - side, 0) + 1))
        top = 0 if whole else int(rng.integers(0, max(height - side, 0) + 1))
        return cls(left, top, min(side, width - left), min(side, height - top), side, bool(rng.random() < 0.5))

    def shows(self, annotation: Annotation) -> bool:
        """Whether the annotation's box overlaps the crop."""
        x, y, w, h = annotation.bbox_xywh
        return x < self.left + self.width and x + w > self.left and y < self.top + self.height and y + h > self.top

    def box(self, annotation: Annotation, size: int) -> Float[np.ndarray, "4"] | None:
        """The annotation's box in pixels of a view of `size`; None where the crop cuts it."""
        x, y, w, h = annotation.bbox_xywh
        left, top = x - self.left, y - self.top
        if min(left, top) < 0 or left + w > self.width or top + h > self.height:
            return None
        if self.flip:
            left = self.width - left - w
        return np.array([left, top, left + w, top + h], np.float32) * np.float32(size / self.side)

    def cells(self, annotation: Annotation, size: int) -> UInt8[np.ndarray, "size size"]:
        """How much of each of the view's `size` x `size` cells an annotation covers, 0 to 255."""
        steps = np.arange(size + 1) * (self.side / size)
        columns = self.left + self.width - steps[::-1] if self.flip else self.left + steps
        covered = coverage(annotation.rle, columns, self.top + steps)
        return covered[:, ::-1] if self.flip else covered

    def pixels(self, image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "y x 3"]:
        """The crop at the view's scale and as the view shows it, but not padded."""
        part = image[self.top : self.top + self.height, self.left : self.left + self.width]
        part = resize(part, self.side, size)
        return part[:, ::-1] if self.flip else part


def random_view(
    sample: LabelledImage, options: ViewOptions, rng: np.random.Generator, other: LabelledImage | None = None
) -> View | None:
    """Crop, flip, resize and recolour, with things of `other` pasted in; None when no mask remains visible enough."""
    crop = Crop.draw(sample.image, options, rng)
    pixels = recolour(crop.pixels(sample.image, options.image_size), options.colour, rng)
    image = pad(pixels, options.image_size, np.round(options.padding))
    scale = options.image_size / crop.side
    extent = np.array([crop.width * scale, crop.height * scale], np.float32)
    pasted: list[np.ndarray] = []
    if other is not None:
        image, pasted = _paste(image, (pixels.shape[0], pixels.shape[1]), other, options, rng)
    if rng.random() < options.ellipses:
        return _of_ellipses(image, extent, options, rng)
    hidden = np.max(pasted, axis=0) if pasted else None

    candidates: list[Annotation | np.ndarray] = [*pasted, *(a for a in sample.annotations if crop.shows(a))]
    if not candidates:
        return None
    chances = _chances(candidates, crop, options)
    masks: list[np.ndarray] = []
    interior: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    kept: list[int] = []
    for index in rng.choice(len(candidates), len(candidates), replace=False, p=chances):
        if len(masks) == options.prompts:
            break
        candidate = candidates[index]
        box = None
        if isinstance(candidate, Annotation):
            target = crop.cells(candidate, options.mask_size)
            if hidden is None or not (hidden & target).any():
                box = crop.box(candidate, options.image_size)
            # cells are covered by both only along edges, where the larger share would be taken twice by a product
            target = target if hidden is None else np.minimum(target, 255 - hidden)
        else:
            target = candidate
        binary = (target > 127).astype(np.uint8)
        if cv2.countNonZero(binary) < options.min_cells:
            continue
        kept.append(index)
        masks.append(target)
        interior.append(_interior_point(binary, options))
        boxes.append(_tight_box(binary, options) if box is None else box)
    if not masks:
        return None
    again = rng.choice(len(masks), options.prompts, p=chances[kept] / chances[kept].sum())
    chosen = np.concatenate([np.arange(len(masks)), again])
    chosen = chosen[: options.prompts]
    height, width = pixels.shape[:2]
    image[:height, :width] = degrade(image[:height, :width], options.degrade, rng)
    view = View(
        image=np.ascontiguousarray(image.transpose(2, 0, 1)),
        masks=np.stack(masks)[chosen],
        interior=np.stack(interior)[chosen],
        boxes=np.stack(boxes)[chosen],
        extent=extent,
    )
    if options.nothing:
        shown = [crop.cells(a, options.mask_size) for a in sample.annotations if crop.shows(a)]
        _ask_about_nothing(view, np.max([*pasted, *shown], axis=0), options, rng)
    return view


def _ask_about_nothing(
    view: View, covered: UInt8[np.ndarray, "m m"], options: ViewOptions, rng: np.random.Generator
) -> None:
    """Turn some of a view's prompts, in place, into points on cells of its picture that no thing covers."""
    columns, rows = np.floor(view.extent * options.mask_size / options.image_size).astype(int)
    ys, xs = np.nonzero(covered[:rows, :columns] == 0)
    if len(ys):
        turned = np.flatnonzero(rng.random(len(view.masks)) < options.nothing)
        at = rng.integers(len(ys), size=len(turned))
        view.masks[turned] = 0
        view.interior[turned] = cell_to_pixel(np.stack([xs[at], ys[at]], 1).astype(np.float32), options)


def _chances(candidates: Sequence[Annotation | np.ndarray], crop: Crop, options: ViewOptions) -> Float[np.ndarray, "n"]:
    """How likely each of a view's things is drawn, by the area of its box in cells; sums to 1."""
    cell = crop.side / options.mask_size
    areas = [
        candidate.bbox_xywh[2] * candidate.bbox_xywh[3] / cell**2
        if isinstance(candidate, Annotation)
        else np.prod(cv2.boundingRect(candidate)[2:])
        for candidate in candidates
    ]
    chances = np.maximum(np.array(areas, float), 1) ** -options.small_first
    return chances / chances.sum()


def _of_ellipses(
    image: UInt8[np.ndarray, "s s 3"], extent: Float[np.ndarray, "2"], options: ViewOptions, rng: np.random.Generator
) -> View:
    """A view asked for ellipses inscribed in random boxes within its extent: areas log-uniform, sides up to 2 : 1."""
    largest = min(options.largest_ellipse or np.inf, extent.max())
    side = np.exp(rng.uniform(np.log(SMALLEST_ELLIPSE), np.log(largest), options.prompts))
    stretch = np.sqrt(np.exp2(rng.uniform(-1, 1, options.prompts)))
    sizes = np.minimum(np.stack([side * stretch, side / stretch], 1), extent)
    corners = rng.uniform(0, 1, (options.prompts, 2)) * (extent - sizes)
    middles = corners + sizes / 2
    # four samples per cell and axis
    samples = (np.arange(4 * options.mask_size) + 0.5) * (options.image_size / options.mask_size / 4)
    x, y = (((samples - middles[:, axis, None]) / (sizes[:, axis, None] / 2)) ** 2 for axis in (0, 1))
    inside = (y[:, :, None] + x[:, None, :] <= 1).reshape(-1, options.mask_size, 4, options.mask_size, 4)
    return View(
        image=np.ascontiguousarray(image.transpose(2, 0, 1)),
        masks=np.rint(255 * inside.mean((2, 4))).astype(np.uint8),
        interior=(middles - 0.5).astype(np.float32),
        boxes=np.concatenate([corners, corners + sizes], 1).astype(np.float32),
        extent=extent,
        boxes_only=True,
    )


def _paste(
    image: np.ndarray, picture: tuple[int, int], other: LabelledImage, options: ViewOptions, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A few things of a view of `other` laid over `image`; returns the picture and their cells.

    They stay where their own view shows them (as in Ghiasi et al. 2021), within `picture`, the height and width that
    is not padding. What would cover more than half of it is not pasted: nothing would be left to ask for.
    """
    crop = Crop.draw(other.image, options, rng)
    height, width = picture
    shown = [a for a in other.annotations if crop.shows(a)]
    wanted = int(rng.integers(1, PASTED + 1))
    cells: list[np.ndarray] = []
    alpha = np.zeros(image.shape[:2], np.uint8)
    for index in rng.permutation(len(shown)):
        if len(cells) == wanted:
            break
        share = crop.cells(shown[index], options.image_size)
        share[height:], share[:, width:] = 0, 0
        target = cv2.resize(share, (options.mask_size, options.mask_size), interpolation=cv2.INTER_AREA)
        area = cv2.countNonZero((target > 127).astype(np.uint8))
        room = options.mask_size**2 * height * width / options.image_size**2
        if options.min_cells <= area <= room / 2:
            cells.append(target)
            alpha = np.maximum(alpha, share)
    if not cells:
        return image, []
    above = pad(recolour(crop.pixels(other.image, options.image_size), options.colour, rng), options.image_size, 0)
    weight = alpha[..., None] * np.float32(1 / 255)
    return np.rint(image + weight * (above.astype(np.float32) - image)).astype(np.uint8), cells


def resize(pixels: np.ndarray, side: int, size: int) -> np.ndarray:
    """Resize so that `side` pixels become `size`."""
    scale = size / side
    width = min(max(round(pixels.shape[1] * scale), 1), size)
    height = min(max(round(pixels.shape[0] * scale), 1), size)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def pad(pixels: np.ndarray, size: int, fill: Any) -> np.ndarray:
    """A square of `size`, padded right and below with `fill`, as SAM does."""
    canvas = np.empty((size, size, *pixels.shape[2:]), np.uint8)
    height, width = pixels.shape[:2]
    canvas[:height, :width] = pixels
    canvas[height:], canvas[:height, width:] = fill, fill
    return canvas


def _interior_point(binary: UInt8[np.ndarray, "m m"], options: ViewOptions) -> np.ndarray:
    depth = cv2.distanceTransform(np.pad(binary, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return cell_to_pixel(np.array([x, y], np.float32), options)


def _tight_box(binary: UInt8[np.ndarray, "m m"], options: ViewOptions) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(binary)
    return np.array([x, y, x + width, y + height], np.float32) * np.float32(options.image_size / options.mask_size)


def cell_to_pixel(cells: np.ndarray, options: ViewOptions) -> np.ndarray:
    """Centres of mask cells, in pixels of the view."""
    return (cells + 0.5) * (options.image_size / options.mask_size) - 0.5
