"""One training example: a random square view of a labelled image, with the masks to be prompted for."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sam_edge.data.sample import Annotation, LabelledImage


@dataclass(frozen=True)
class ViewOptions:
    """How a picture becomes a training example."""

    image_size: int = 256
    """Side of the view, in pixels."""
    mask_size: int = 128
    """Side of the target masks, in cells: the size of the decoder's logits."""
    prompts: int = 16
    """Masks prompted per view; masks repeat, with other prompts, where a picture has fewer."""
    max_zoom: float = 3.0
    """The view's side is the picture's long side over a zoom drawn log-uniformly from 1 to this."""
    whole: float = 0.3
    """Share of views that show the whole picture, padded as SAM pads it."""
    colour: float = 0.2
    """Largest relative change of brightness, contrast and saturation."""
    min_cells: int = 12
    """Smallest visible area of a mask, in cells of `mask_size`."""
    padding: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB of what is not picture: the pixel mean, since SAM pads with zeros after it has normalised."""


@dataclass(frozen=True)
class View:
    """A training example; coordinates are pixels of the view."""

    image: UInt8[np.ndarray, "3 s s"]
    masks: UInt8[np.ndarray, "k m m"]
    """Coverage of each cell, 0 to 255."""
    interior: Float[np.ndarray, "k 2"]
    """Each mask's most interior point, (x, y)."""
    boxes: Float[np.ndarray, "k 4"]
    """Each mask's tight box, XYXY."""
    extent: Float[np.ndarray, "2"]
    """Width and height of the part that is picture, not padding."""


def random_view(sample: LabelledImage, options: ViewOptions, rng: np.random.Generator) -> View | None:
    """Crop, flip, resize and recolour; None when no mask remains visible enough to be asked for."""
    height, width = sample.image.shape[:2]
    whole = rng.random() < options.whole
    zoom = 1.0 if whole else float(np.exp(rng.uniform(0, np.log(options.max_zoom))))
    side = max(round(max(height, width) / zoom), 16)
    left = 0 if whole else int(rng.integers(0, max(width - side, 0) + 1))
    top = 0 if whole else int(rng.integers(0, max(height - side, 0) + 1))
    crop_w, crop_h = min(side, width - left), min(side, height - top)
    flip = rng.random() < 0.5

    inside = [a for a in sample.annotations if _overlaps(a, left, top, crop_w, crop_h)]
    order = rng.permutation(len(inside))
    masks: list[np.ndarray] = []
    interior: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    for index in order:
        if len(masks) == options.prompts:
            break
        mask = inside[index].mask()[top : top + crop_h, left : left + crop_w]
        target = place(mask.astype(np.uint8) * 255, side, options.mask_size, flip, 0)
        binary = target > 127
        if binary.sum() < options.min_cells:
            continue
        masks.append(target)
        interior.append(_interior_point(binary, options))
        boxes.append(_tight_box(binary, options))
    if not masks:
        return None
    chosen = np.concatenate([np.arange(len(masks)), rng.integers(0, len(masks), options.prompts)])
    chosen = chosen[: options.prompts]
    pixels = recolour(sample.image[top : top + crop_h, left : left + crop_w], options.colour, rng)
    image = place(pixels, side, options.image_size, flip, np.round(options.padding))
    scale = options.image_size / side
    return View(
        image=np.ascontiguousarray(image.transpose(2, 0, 1)),
        masks=np.stack(masks)[chosen],
        interior=np.stack(interior)[chosen],
        boxes=np.stack(boxes)[chosen],
        extent=np.array([crop_w * scale, crop_h * scale], np.float32),
    )


def _overlaps(annotation: Annotation, left: int, top: int, width: int, height: int) -> bool:
    x, y, w, h = annotation.bbox_xywh
    return x < left + width and x + w > left and y < top + height and y + h > top


def place(pixels: np.ndarray, side: int, size: int, flip: bool, fill: Any) -> np.ndarray:
    """Resize so that `side` becomes `size`, flip, and pad right and below with `fill`, as SAM does."""
    scale = size / side
    width = max(round(pixels.shape[1] * scale), 1)
    height = max(round(pixels.shape[0] * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(pixels, (width, height), interpolation=method)
    if flip:
        resized = resized[:, ::-1]
    canvas = np.full((size, size, *pixels.shape[2:]), fill, np.uint8)
    canvas[:height, :width] = resized[:size, :size]
    return canvas


def _interior_point(binary: np.ndarray, options: ViewOptions) -> np.ndarray:
    depth = cv2.distanceTransform(np.pad(binary, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return cell_to_pixel(np.array([x, y], np.float32), options)


def _tight_box(binary: np.ndarray, options: ViewOptions) -> np.ndarray:
    ys, xs = np.flatnonzero(binary.any(1)), np.flatnonzero(binary.any(0))
    cell = options.image_size / options.mask_size
    box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32) * cell
    box[2:] -= 1
    return box


def cell_to_pixel(cells: np.ndarray, options: ViewOptions) -> np.ndarray:
    """Centres of mask cells, in pixels of the view."""
    return (cells + 0.5) * (options.image_size / options.mask_size) - 0.5


def recolour(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast and saturation, each changed by at most `amount` of itself."""
    if amount == 0:
        return image
    pixels = image.astype(np.float32)
    brightness, contrast, saturation = 1 + rng.uniform(-amount, amount, 3)
    grey = pixels.mean(-1, keepdims=True)
    pixels = (grey + (pixels - grey) * saturation) * brightness
    mean = pixels.mean()
    return np.clip((pixels - mean) * contrast + mean, 0, 255).astype(np.uint8)
