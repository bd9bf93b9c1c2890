"""Views of a picture that can be made again from their number alone: what a teacher said of them can be kept."""

import os
from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np
from jaxtyping import UInt8

from sam_edge.training.views import Crop, pad

Picture = UInt8[np.ndarray, "h w 3"]

FINGERPRINT_BYTES = 16


@dataclass(frozen=True)
class FixedViews:
    """View 0 shows all of a picture; the others are crops drawn by the picture's name and their number."""

    max_zoom: float = 2.0
    """Largest magnification of a crop; zooms are drawn log-uniformly from 1."""
    seed: int = 0
    """Seed of the crops."""

    def crop(self, name: str, view: int, height: int, width: int) -> Crop:
        """The part of the picture `name` that view number `view` shows."""
        longer = max(height, width)
        if view == 0:
            return Crop(0, 0, width, height, longer, flip=False)
        # by the name, not by its place in a listing: more pictures change no view of those there are
        digest = sha256(os.fsencode(f"{self.seed} {view} {name}")).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        side = max(round(longer / self.max_zoom ** rng.random()), 16)
        left, top = (int(rng.integers(0, max(length - side, 0) + 1)) for length in (width, height))
        return Crop(left, top, min(side, width - left), min(side, height - top), side, bool(rng.random() < 0.5))


def square(
    crop: Crop, image: Picture, size: int, padding: tuple[float, float, float]
) -> UInt8[np.ndarray, "3 size size"]:
    """The view's pixels for a model of image size `size`, padded right and below as SAM pads."""
    padded = pad(crop.pixels(image, size), size, np.round(padding))
    return np.ascontiguousarray(padded.transpose(2, 0, 1))


def extent_px(crop: Crop, size: int) -> tuple[float, float]:
    """Width and height of what is picture, not padding, in pixels of a view of `size`."""
    return crop.width * size / crop.side, crop.height * size / crop.side


def fingerprint(crop: Crop, image: Picture) -> UInt8[np.ndarray, "16"]:
    """Tells the view from one of another picture or crop; of the pixels, every eighth of every eighth row counts."""
    digest = blake2b(f"{image.shape} {crop}".encode(), digest_size=FINGERPRINT_BYTES)
    digest.update(np.ascontiguousarray(image[::8, ::8]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
