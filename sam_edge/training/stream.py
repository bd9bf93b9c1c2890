"""An endless, seeded stream of training views from weighted sources.

Example number i depends on (seed, i) alone: whatever the worker count, and after a resume, the same i gives the
same pixels. So a run's data order needs no state besides the step it is at.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler

from sam_edge.data.sample import LabelledDataset
from sam_edge.errors import DataError
from sam_edge.training.views import View, ViewOptions, random_view


@dataclass(frozen=True)
class Source:
    """A labelled data set and how often it is drawn."""

    dataset: LabelledDataset
    weight: float = 1.0


class ViewStream(Dataset[View]):
    """Map-style: index -> view, drawn from the sources by weight."""

    def __init__(self, sources: Sequence[Source], options: ViewOptions, seed: int) -> None:
        if not sources:
            raise DataError("training needs at least one labelled data set: give --data.")
        self.sources = list(sources)
        self.options = options
        self.seed = seed
        weights = np.array([source.weight for source in sources], float)
        self.probabilities = weights / weights.sum()

    def __getitem__(self, index: int) -> View:
        """The view number `index`; draws again, up to 100 times, past unreadable files and empty crops."""
        rng = np.random.default_rng([self.seed, index])
        for _ in range(100):
            source = self.sources[rng.choice(len(self.sources), p=self.probabilities)].dataset
            try:
                sample = source[int(rng.integers(len(source)))]
            except DataError:
                continue
            view = random_view(sample, self.options, rng)
            if view is not None:
                return view
        raise DataError("no usable mask in 100 draws: the data set's masks are too small or its files unreadable.")


@dataclass(frozen=True)
class ViewBatch:
    """Views stacked as tensors: image uint8 B x 3 x S x S, masks uint8 B x K x M x M, the rest float32."""

    image: torch.Tensor
    masks: torch.Tensor
    interior: torch.Tensor
    boxes: torch.Tensor
    extent: torch.Tensor


class Steps(Sampler[list[int]]):
    """Batches of consecutive example numbers, this process's share of each step, from `start` to `stop`."""

    def __init__(self, start: int, stop: int, batch_size: int) -> None:
        self.start, self.stop, self.batch_size = start, stop, batch_size
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = (step * self.world + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.stop - self.start


def step_batches(
    examples: Dataset[Any], batch_size: int, start: int, stop: int, *, workers: int, collate: Callable[..., Any]
) -> DataLoader[Any]:
    """Batches for steps `start` to `stop`; each process of a `torchrun` gets its own disjoint share."""
    return DataLoader(
        examples,
        batch_sampler=Steps(start, stop, batch_size),
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )


def stack_views(views: list[View]) -> ViewBatch:
    """Views as one batch."""

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(view, name) for view in views]))

    names = ("image", "masks", "interior", "boxes", "extent")
    return ViewBatch(*(stack(name) for name in names))
