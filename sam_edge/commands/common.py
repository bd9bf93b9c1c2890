"""What several commands share: the form of progress, pictures drawn from a folder."""

import random
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from sam_edge.data import open_images
from sam_edge.data.split import is_val
from sam_edge.errors import DataError

OnProgress = Callable[[int, int, str], None]
Picture = UInt8[np.ndarray, "h w 3"]


def counting(total: int, text: str, on_progress: OnProgress | None) -> Callable[[], None]:
    """A call per finished piece of `total`, passed on with the count."""
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total, text)

    return one_more


def sample_pictures(images: str, count: int, seed: int, *, strict: bool = False) -> list[Picture]:
    """`count` pictures drawn by `seed` from the train split of `images`, or from all where there is no such split.

    In the place of one that cannot be read another is drawn; without `strict`, with which it is an error.

    Raises:
        DataError: fewer than one asked for, or no picture there that can be read.
    """
    return _sample(images, count, seed, strict)[1]


def sample_others(images: str, count: int, seed: int, taken: int, *, strict: bool = False) -> list[Picture]:
    """The same of those that `sample_pictures(images, taken, seed)` leaves, or of all where it leaves none."""
    return _sample(images, count, seed + 1, strict, _sample(images, taken, seed, strict)[0])[1]


def _sample(
    images: str, count: int, seed: int, strict: bool, taken: Sequence[int] = ()
) -> tuple[list[int], list[Picture]]:
    """Indices drawn by `seed`, without `taken` where others are left, and the pictures of those that can be read."""
    if count < 1:
        raise DataError(f"at least one picture must be asked for, got {count}.")
    pictures = open_images(images, strict)
    indices = [i for i, name in enumerate(pictures.names) if not is_val(name)] or list(range(len(pictures)))
    indices = [index for index in indices if index not in set(taken)] or indices
    generator = random.Random(seed)
    drawn = generator.sample(indices, min(count, len(indices)))
    found = list(pictures.subset(drawn))
    while len(found) < count and len(drawn) < len(indices):
        # some are broken: as many others, until there are none
        rest = [index for index in indices if index not in set(drawn)]
        more = generator.sample(rest, min(count - len(found), len(rest)))
        found += pictures.subset(more)
        drawn += more
    if not found:
        raise DataError(f"none of the {len(drawn)} pictures of {images} can be read.")
    return drawn, [image for _, image in found]
