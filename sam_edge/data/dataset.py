"""Reading many files of which a few may be broken: one behaviour for every kind of dataset."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from sam_edge.errors import DataError

Item = TypeVar("Item")


class Dataset(ABC, Generic[Item]):
    """A sized, indexable collection whose files may turn out to be unreadable.

    Indexing raises `DataError` for a broken file. Iterating yields the readable items in order: broken ones are left
    out, counted in `skipped`, and reported by one warning when the pass ends, as are broken annotations of readable
    ones, which items leave out themselves and count in `unreadable`. With `strict=True` the first of either raises.
    """

    strict: bool = False
    skipped: int = 0
    """Files left out by the latest (or current) pass of iteration."""
    unreadable: int = 0
    """Annotations left out of the items of that pass."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """File names, in the order of the items; relative to the root, with forward slashes."""

    @abstractmethod
    def __getitem__(self, index: int) -> Item:
        """Item `index`. Raises DataError if its file is broken, IndexError if there is no such item."""

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> "Dataset[Item]":
        """The items at `indices`, in that order, as a dataset of its own."""
        return _Subset(self, indices)

    def __iter__(self) -> Iterator[Item]:
        self.skipped = self.unreadable = 0
        first_offender: DataError | None = None
        first_wrong = ""
        try:
            for index in range(len(self)):
                try:
                    item = self[index]
                except DataError as error:
                    if self.strict:
                        raise
                    self.skipped += 1
                    first_offender = first_offender or error
                    continue
                wrong = getattr(item, "unreadable", ())
                self.unreadable += len(wrong)
                first_wrong = first_wrong or "".join(wrong[:1])
                yield item
        finally:
            # In `finally`, so that a caller who stops early still learns of what was skipped up to there.
            if first_offender is not None:
                warnings.warn(
                    f"skipped {self.skipped} of {len(self)} unreadable files, the first: {first_offender}",
                    stacklevel=2,
                )
            if first_wrong:
                warnings.warn(
                    f"left out {self.unreadable} unreadable annotations, the first: {first_wrong}", stacklevel=2
                )


class _Subset(Dataset[Item]):
    def __init__(self, whole: Dataset[Item], indices: Sequence[int]) -> None:
        self.strict = whole.strict
        self._whole, self._indices = whole, list(indices)
        self._names = [whole.names[index] for index in self._indices]

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> Item:
        return self._whole[self._indices[index]]
