"""Pictures of masks: what a person looks at."""

import colorsys
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

TINT = 0.45
"""Share of a mask's colour in its pixels."""
SATURATION = 200 / 255
"""Of the masks' colours."""
_WHITE, _GREEN, _RED = (255, 255, 255), (40, 220, 60), (230, 40, 40)


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    *,
    points: Sequence[tuple[float, float, int]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
    seed: int = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with each mask tinted and outlined, largest first, and the prompts drawn.

    Points are (x, y, label), green for foreground and red for background; boxes XYXY.
    """
    rng = np.random.default_rng(seed)
    drawn = np.array(image, order="C")
    thickness = max(round(max(image.shape[:2]) / 400), 1)
    # one mask at a time: a sequence may decode them as they are asked for
    areas = [int(mask.sum()) for mask in masks]
    # outlines lie over all tints: until then each pixel holds the number of the last one through it, from 1
    outlined = np.zeros(image.shape[:2], np.min_scalar_type(len(areas)))
    colours = np.zeros((len(areas) + 1, 3), np.uint8)
    for number, index in enumerate(sorted(range(len(areas)), key=lambda index: -areas[index]), 1):
        colours[number] = mask_colour(int(rng.integers(180)))
        if areas[index]:
            mask = masks[index]
            window, inside = _cropped(mask, thickness)
            _tint(drawn[window], inside, colours[number])
            outlined[window][_outline(inside, thickness)] = number
    shown = outlined > 0
    drawn[shown] = colours[outlined[shown]]
    for box in boxes:
        _draw_box(drawn, box, thickness + 1)
    for x, y, label in points:
        _draw_disc(drawn, round(x), round(y), 4 * thickness, _WHITE)
        _draw_disc(drawn, round(x), round(y), 3 * thickness, _GREEN if label == 1 else _RED)
    return drawn


def mask_colour(hue: int) -> tuple[int, int, int]:
    """RGB of a hue of 0 to 179, in steps of two degrees."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue / 180, SATURATION, 1))
    return red, green, blue


def _cropped(mask: Bool[np.ndarray, "h w"], margin: int) -> tuple[tuple[slice, slice], Bool[np.ndarray, "b c"]]:
    """The part of the picture within `margin` pixels of a mask that is not empty, and the mask there."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + 1 + margin),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + 1 + margin),
    )
    return window, mask[window]


def _tint(pixels: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], colour: UInt8[np.ndarray, "3"]) -> None:
    """Mix `colour` into the pixels of a mask, in place."""
    levels = np.arange(256)
    # a table: masks as large as the picture take no floats
    table = np.concatenate([np.rint((1 - TINT) * levels + TINT * int(part)).astype(int) for part in colour])
    mixed = Image.fromarray(pixels).point(table.tolist())
    np.copyto(pixels, np.asarray(mixed), where=mask[..., None])


def _outline(mask: Bool[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """A line of `thickness` pixels along the mask's outermost ones, which have a 4-neighbour outside.

    They lie in its middle; an even thickness has one more inside. The picture's border is outside, too.
    """
    height, width = mask.shape
    padded = np.pad(mask, thickness)
    stride = padded.shape[1]
    whole = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge = np.flatnonzero(np.pad(padded[1:-1, 1:-1] & ~whole, 1))
    line = np.zeros(padded.size, bool)
    for offset in _pen(thickness // 2, stride):
        line[edge + offset] = True
    line &= padded.ravel()
    for offset in _pen((thickness - 1) // 2, stride):
        line[edge + offset] = True
    return line.reshape(padded.shape)[thickness : thickness + height, thickness : thickness + width]


def _pen(radius: int, stride: int) -> Iterator[int]:
    """Places of a disc's pixels relative to its centre, in the scan of rows of `stride` pixels."""
    reach = range(-radius, radius + 1)
    return (dy * stride + dx for dy in reach for dx in reach if dy * dy + dx * dx <= (radius + 0.5) ** 2)


def _draw_box(pixels: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float, float], thickness: int) -> None:
    """White lines of `thickness` pixels along a box XYXY, in place; what lies outside the picture is left out."""
    (left, right), (top, bottom) = sorted((round(box[0]), round(box[2]))), sorted((round(box[1]), round(box[3])))
    for x in (left, right):
        pixels[_line(top, bottom, thickness), _line(x, x, thickness)] = _WHITE
    for y in (top, bottom):
        pixels[_line(y, y, thickness), _line(left, right, thickness)] = _WHITE


def _line(first: int, last: int, thickness: int) -> slice:
    """The pixels that a pen of `thickness` touches from `first` to `last`."""
    low = first - (thickness - 1) // 2
    return slice(max(low, 0), max(last - (thickness - 1) // 2 + thickness, 0))


def _draw_disc(pixels: UInt8[np.ndarray, "h w 3"], x: int, y: int, radius: int, colour: tuple[int, int, int]) -> None:
    """A disc of 2 `radius` + 1 pixels, in place; those at its edge are covered by as much as lies inside."""
    ys = np.arange(max(y - radius, 0), min(y + radius + 1, pixels.shape[0]))
    xs = np.arange(max(x - radius, 0), min(x + radius + 1, pixels.shape[1]))
    if len(ys) == 0 or len(xs) == 0:
        return
    patch = pixels[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
    covered = np.clip(radius + 1 - np.hypot(ys[:, None] - y, xs - x), 0, 1)[..., None]
    patch[:] = np.rint(patch + covered * (np.array(colour) - patch)).astype(np.uint8)
