"""What several commands share: the form of progress, pictures drawn from a folder, a step of the lineage."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from sam_edge.data import open_images
from sam_edge.data.split import is_val
from sam_edge.models.sam import EdgeSam

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
    """`count` pictures drawn by `seed` from the train split of `images`, or from all where there is no such split."""
    pictures = open_images(images, strict)
    indices = [index for index, name in enumerate(pictures.names) if not is_val(name)] or list(range(len(pictures)))
    chosen = random.Random(seed).sample(indices, min(count, len(indices)))
    return [image for _, image in pictures.subset(chosen)]


def add_step(
    model: EdgeSam, step: str, settings: dict[str, Any], seed: int, parent_sha256: str, data: Sequence[str]
) -> None:
    """Write into the model's lineage what has just made it."""
    model.config = model.config.with_step(
        {
            "step": step,
            "settings": settings,
            "seed": seed,
            "parent_sha256": parent_sha256,
            "data": list(data),
        }
    )
