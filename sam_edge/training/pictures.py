"""Unlabelled pictures as training examples, for distillation: a function of the example's number, epoch by epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from sam_edge.data.dataset import Dataset
from sam_edge.errors import DataError
from sam_edge.training.colour import recolour
from sam_edge.training.views import pad, resize

Pictures = Dataset[tuple[str, UInt8[np.ndarray, "h w 3"]]]


@dataclass(frozen=True)
class PictureOptions:
    """How an unlabelled picture is shown."""

    image_size: int
    """Side of the view, in pixels."""
    max_zoom: float = 2.0
    """The view's side is the picture's long side over a zoom drawn log-uniformly from 1 to this."""
    views: int = 1
    """Different views of each picture, taken in turn from epoch to epoch; the first shows the whole picture."""
    colour: float = 0.1
    """Largest relative change of brightness, contrast and saturation, and largest turn of the hue in radians."""
    padding: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB of what is not picture."""


class PictureStream(TorchDataset[tuple[int, Tensor]]):
    """Endless: example i is a seeded view of picture i of its epoch's shuffle, with the view's number.

    There are `views` x pictures different examples, numbered picture x views + view, so that what a teacher makes of
    each can be kept.
    """

    def __init__(self, pictures: Pictures, indices: Sequence[int], options: PictureOptions, seed: int) -> None:
        if not indices:
            raise DataError("no picture to train on: check --images.")
        self.pictures, self.indices = pictures, list(indices)
        self.options, self.seed = options, seed

    def __len__(self) -> int:
        """Different views that there are."""
        return len(self.pictures) * self.options.views

    def __getitem__(self, index: int) -> tuple[int, UInt8[Tensor, "3 s s"]]:
        """Example `index`; an unreadable file is passed over for the next one."""
        epoch, position = divmod(index, len(self.indices))
        order = np.random.default_rng([self.seed, epoch]).permutation(self.indices)
        view = epoch % self.options.views
        for offset in range(len(order)):
            picture = int(order[(position + offset) % len(order)])
            try:
                _, image = self.pictures[picture]
            except DataError:
                continue
            rng = np.random.default_rng([self.seed, picture, view])
            options = self.options if view else replace(self.options, max_zoom=1.0, colour=0.0)
            return picture * self.options.views + view, torch.from_numpy(random_square(image, options, rng))
        raise DataError("none of the pictures can be read.")


def random_square(
    image: UInt8[np.ndarray, "h w 3"], options: PictureOptions, rng: np.random.Generator
) -> UInt8[np.ndarray, "3 s s"]:
    """A random square crop, flipped and recoloured by chance, padded as SAM pads."""
    height, width = image.shape[:2]
    zoom = float(np.exp(rng.uniform(0, np.log(options.max_zoom))))
    side = max(round(max(height, width) / zoom), 16)
    left, top = (int(rng.integers(0, max(size - side, 0) + 1)) for size in (width, height))
    pixels = resize(image[top : top + side, left : left + side], side, options.image_size)
    pixels = recolour(pixels[:, ::-1] if rng.random() < 0.5 else pixels, options.colour, rng)
    square = pad(pixels, options.image_size, np.round(options.padding))
    return np.ascontiguousarray(square.transpose(2, 0, 1))
