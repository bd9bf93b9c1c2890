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

    Raises:
        DataError: fewer than one asked for, or no picture there.
    """
    pictures = open_images(images, strict)
    return [image for _, image in pictures.subset(_drawn(pictures.names, count, seed))]


def sample_others(images: str, count: int, seed: int, taken: int, *, strict: bool = False) -> list[Picture]:
    """The same of those that `sample_pictures(images, taken, seed)` leaves, or of all where it leaves none."""
    pictures = open_images(images, strict)
    return [image for _, image in pictures.subset(_drawn(pictures.names, count, seed + 1, taken, seed))]


def _drawn(names: Sequence[str], count: int, seed: int, taken: int = 0, taken_seed: int = 0) -> list[int]:
    """Indices drawn by `seed`, but for `taken` that another seed draws."""
    if count < 1:
        raise DataError(f"at least one picture must be asked for, got {count}.")
    indices = [index for index, name in enumerate(names) if not is_val(name)] or list(range(len(names)))
    if taken:
        others = set(_drawn(names, taken, taken_seed))
        indices = [index for index in indices if index not in others] or indices
    return random.Random(seed).sample(indices, min(count, len(indices)))
