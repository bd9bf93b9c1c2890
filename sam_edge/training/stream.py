"""An endless, seeded stream of training views from weighted sources.

Example number i depends on (seed, i) alone: whatever the worker count, and after a resume, the same i gives the
same pixels. So a run's data order needs no state besides the step it is at.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sam_edge.data.sample import LabelledDataset, LabelledImage
from sam_edge.data.unreadable import Unreadable
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.training.processes import rank, world
from sam_edge.training.views import View, ViewOptions, random_view

LANES, NEIGHBOURS = 8, 512
"""Of a source in shards, each of so many interleaved lanes of examples reads one stretch of a shard for so many."""
CACHE_BYTES = 256 << 20
"""Memory that each process may fill with pictures it has read, so that small data sets are decoded once."""


@dataclass(frozen=True)
class Source:
    """A labelled data set and how often it is drawn."""

    dataset: LabelledDataset
    weight: float = 1.0


class ViewStream(Dataset[View]):
    """Map-style: index -> view, drawn from the sources by weight."""

    def __init__(
        self, sources: Sequence[Source], options: ViewOptions, seed: int, unreadable: Unreadable | None = None
    ) -> None:
        if not sources:
            raise DataError("training needs at least one labelled data set: give --data.")
        self.sources = list(sources)
        self.options = options
        self.seed = seed
        self.unreadable = unreadable
        weights = np.array([source.weight for source in sources], float)
        if not weights.sum() > 0:
            raise DataError("every --data has weight 0: nothing would ever be drawn.")
        self.probabilities = weights / weights.sum()
        self._cache: OrderedDict[tuple[int, Any], LabelledImage] = OrderedDict()
        self._cached_bytes = 0

    def __getitem__(self, index: int) -> View:
        """The view number `index`; draws again, up to 100 times, past unreadable files and empty crops."""
        rng = np.random.default_rng([self.seed, index])
        # the same for the neighbours in a lane; the last entry keeps it apart from every example's own
        shared = np.random.default_rng([self.seed, index // (LANES * NEIGHBOURS), index % LANES, 1])
        reason = "the data set's masks are too small"
        for _ in range(100):
            source = int(rng.choice(len(self.sources), p=self.probabilities))
            try:
                sample = self._draw(source, rng, shared)
                other = self._draw(source, rng, shared) if rng.random() < self.options.copy_paste else None
            except DataError as error:
                reason = str(error)
                continue
            view = random_view(sample, self.options, rng, other)
            if view is not None:
                return view
        raise DataError(f"no usable mask in 100 draws: {reason}")

    def _draw(self, source: int, rng: np.random.Generator, shared: np.random.Generator) -> LabelledImage:
        dataset = self.sources[source].dataset
        number = dataset.draw(rng, shared)
        sample = self._cache.get((source, number))
        if sample is not None:
            self._cache.move_to_end((source, number))
            return sample
        sample = dataset[number] if self.unreadable is None else self.unreadable.read(dataset, number)
        self._cache[source, number] = sample
        self._cached_bytes += sample.image.nbytes
        while self._cached_bytes > CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.image.nbytes
        return sample


@dataclass(frozen=True)
class ViewBatch:
    """Views stacked as tensors.

    Image is uint8 B x 3 x S x S, masks uint8 B x K x M x M, boxes_only bool B, the rest float32.
    """

    image: torch.Tensor
    masks: torch.Tensor
    interior: torch.Tensor
    boxes: torch.Tensor
    extent: torch.Tensor
    boxes_only: torch.Tensor

    def example(self, index: int) -> "ViewBatch":
        """One example as a batch of its own."""
        return ViewBatch(*(getattr(self, field.name)[index : index + 1] for field in fields(self)))


def first_example(step: int, batch_size: int) -> int:
    """Number of the first example in this process's batch of a step; the processes' batches follow each other."""
    return (step * world() + rank()) * batch_size


class Steps(Sampler[list[int]]):
    """Batches of consecutive example numbers, this process's share of each step, from `start` to `stop`."""

    def __init__(self, start: int, stop: int, batch_size: int) -> None:
        self.start, self.stop, self.batch_size = start, stop, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            first = first_example(step, self.batch_size)
            yield list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.stop - self.start


def step_batches(
    examples: Dataset[Any], batch_size: int, start: int, stop: int, *, workers: int, collate: Callable[..., Any]
) -> Iterator[Any]:
    """Batches for steps `start` to `stop`; each process of a `torchrun` gets its own disjoint share.

    What a worker cannot read it says in its own words, not in torch's account of them.
    """
    batches: DataLoader[Any] = DataLoader(
        examples,
        batch_sampler=Steps(start, stop, batch_size),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    try:
        yield from batches
    except SamEdgeError as error:
        # a worker's error is raised again with its whole traceback as the message, the error itself last
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()) from error


def _one_thread(worker: int) -> None:
    # OpenCV would start a thread per core in every worker
    cv2.setNumThreads(0)


def stack_views(views: list[View]) -> ViewBatch:
    """Views as one batch."""

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(view, name) for view in views]))

    return ViewBatch(*(stack(field.name) for field in fields(ViewBatch)))
