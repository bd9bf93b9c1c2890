"""Outlines of synthetic objects, and how much of each pixel they cover."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_SUBPIXELS = 4
"""Outlines are drawn this many times finer and averaged, which is what antialiases their edges."""


@dataclass(frozen=True)
class Outline:
    """Closed contours filled by the even-odd rule, or, with `stroke`, open lines of that width."""

    contours: tuple[Float[np.ndarray, "n 2"], ...]
    """Corners (x, y)."""
    stroke: float | None = None
    """Line width in the unit of the contours; None fills them."""

    def placed(self, centre_px: tuple[float, float], scale_px: float, angle: float = 0.0) -> "Outline":
        """A unit outline turned by `angle` (radians), scaled and moved into the picture."""
        sin, cos = np.sin(angle), np.cos(angle)
        turn = np.array([[cos, sin], [-sin, cos]]) * scale_px
        contours = tuple(contour @ turn + np.asarray(centre_px) for contour in self.contours)
        return Outline(contours, None if self.stroke is None else self.stroke * scale_px)


@dataclass(frozen=True)
class Coverage:
    """The part of the picture that an outline touches."""

    left: int
    top: int
    share: UInt8[np.ndarray, "h w"]
    """Covered share of each pixel, 255 for all of it."""

    def window(self, picture: np.ndarray) -> np.ndarray:
        """The view of a picture (... x height x width) that the coverage lies on."""
        height, width = self.share.shape
        return picture[..., self.top : self.top + height, self.left : self.left + width]


def cover(outline: Outline, size: int) -> Coverage | None:
    """Rasterises an outline within a `size` x `size` picture; None if it lies outside."""
    corners = np.concatenate(outline.contours)
    reach = 1.0 if outline.stroke is None else outline.stroke / 2 + 1
    left, top = (max(0, int(low)) for low in np.floor(corners.min(axis=0) - reach))
    right, bottom = (min(size, int(high)) for high in np.ceil(corners.max(axis=0) + reach))
    if right <= left or bottom <= top:
        return None
    fine = np.zeros(((bottom - top) * _SUBPIXELS, (right - left) * _SUBPIXELS), np.uint8)
    drawn = [np.rint((contour - (left, top)) * _SUBPIXELS - 0.5).astype(np.int32) for contour in outline.contours]
    if outline.stroke is None:
        cv2.fillPoly(fine, drawn, 255)
    else:
        cv2.polylines(fine, drawn, False, 255, max(_SUBPIXELS, round(outline.stroke * _SUBPIXELS)))
    share = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return Coverage(left, top, share)


def smooth_radius(rng: np.random.Generator, waves: int, roughness: float, points: int = 48) -> Outline:
    """A closed curve around the origin whose radius is 1 plus a few random waves."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    orders = np.arange(2, 2 + waves)
    strengths = rng.normal(0, roughness, waves) / np.sqrt(orders)
    radius = 1 + (strengths[:, None] * np.cos(orders[:, None] * angles + rng.uniform(0, 6.3, (waves, 1)))).sum(0)
    radius = np.maximum(radius, 0.25)
    return Outline((np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None],))


def ellipse(rng: np.random.Generator) -> Outline:
    return _squashed(smooth_radius(rng, 1, 0.0, 64), rng.uniform(0.4, 1))


def blob(rng: np.random.Generator) -> Outline:
    return _squashed(smooth_radius(rng, 5, 0.22, 64), rng.uniform(0.6, 1))


def cell(rng: np.random.Generator) -> Outline:
    """A nearly round body, as seen through a microscope."""
    return _squashed(smooth_radius(rng, 3, 0.07, 28), rng.uniform(0.6, 1))


def polygon(rng: np.random.Generator) -> Outline:
    """Three to seven corners, convex or nearly so."""
    corners = int(rng.integers(3, 8))
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    radius = rng.uniform(0.7, 1.1, corners)
    return Outline((np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1),))


def star(rng: np.random.Generator) -> Outline:
    spikes = int(rng.integers(4, 9))
    angles = np.arange(2 * spikes) * np.pi / spikes
    radius = np.where(np.arange(2 * spikes) % 2 == 0, 1.1, rng.uniform(0.4, 0.75))
    return Outline((np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1),))


def rectangle(width: float, height: float, rounding: float) -> Outline:
    """A rectangle of half sides `width` and `height`; `rounding` 0 is sharp, 1 makes its ends round."""
    radius = max(min(width, height) * rounding, 1e-3)
    corner = np.linspace(0, np.pi / 2, 6)
    quarters = []
    for quarter, (side_x, side_y) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        angles = corner + quarter * np.pi / 2
        centre = np.array([side_x * (width - radius), side_y * (height - radius)])
        quarters.append(centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return Outline((np.concatenate(quarters),))


def rounded_rectangle(rng: np.random.Generator) -> Outline:
    return rectangle(1.0, rng.uniform(0.4, 1), rng.choice([0.0, rng.uniform(0.1, 0.6)]))


def capsule(rng: np.random.Generator) -> Outline:
    return rectangle(1.3, rng.uniform(0.12, 0.35), 1.0)


def ring(rng: np.random.Generator) -> Outline:
    """A disc or polygon with a hole."""
    outer = ellipse(rng) if rng.random() < 0.7 else polygon(rng)
    return Outline((outer.contours[0], outer.contours[0][::-1] * rng.uniform(0.4, 0.75)))


def crescent(rng: np.random.Generator) -> Outline:
    """A thick arc: an object that bends around what is not part of it."""
    angles = np.linspace(0, rng.uniform(1.8, 4.5), 24)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Outline((arc - arc.mean(axis=0),), stroke=rng.uniform(0.25, 0.5))


def curve(rng: np.random.Generator) -> Outline:
    """A thin wavy line, such as a cable or a branch."""
    along = np.linspace(-1.6, 1.6, 32)
    across = rng.uniform(0.1, 0.5) * np.sin(along * rng.uniform(1, 4) + rng.uniform(0, 6.3))
    return Outline((np.stack([along, across + rng.uniform(-0.3, 0.3) * along**2], axis=1),), rng.uniform(0.08, 0.2))


UNIT_SHAPES: tuple[Callable[[np.random.Generator], Outline], ...] = (
    *(ellipse, ellipse, blob, blob, polygon, polygon, rounded_rectangle, rounded_rectangle),
    *(star, capsule, ring, crescent, curve),
)
"""Shapes of about unit radius; the common ones are listed twice."""


def any_shape(rng: np.random.Generator) -> Outline:
    return UNIT_SHAPES[int(rng.integers(len(UNIT_SHAPES)))](rng)


def _squashed(outline: Outline, by: float) -> Outline:
    return Outline(tuple(contour * (1.0, by) for contour in outline.contours), outline.stroke)
