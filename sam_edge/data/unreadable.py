"""Broken files that are met out of order, by data workers: counted, or fatal where a command is strict."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sam_edge.data.dataset import Dataset, Item
from sam_edge.errors import DataError, SamEdgeError


class Unreadable:
    """What could not be read, told by all processes of one run.

    Workers are copies that share no memory with the one that reports, so each appends to one file what it finds.
    """

    def __init__(self, file: Path, strict: bool) -> None:
        self._file, self.strict = file, strict

    def read(self, dataset: Dataset[Item], index: Any) -> Item:
        """An item, with what is wrong in it noted.

        Raises:
            DataError: it is broken; SamEdgeError, if strict.
        """
        try:
            item = dataset[index]
        except DataError as error:
            self.note(str(error))
            raise
        for wrong in getattr(item, "unreadable", ()):
            self.note(wrong)
        return item

    def note(self, reason: str) -> None:
        """Keep what is wrong with a file.

        Raises:
            SamEdgeError: this, if strict; not the DataError that readers of a folder go on from.
        """
        if self.strict:
            raise SamEdgeError(reason)
        # one write, so that lines of several processes cannot mix
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, json.dumps(reason).encode() + b"\n")
        finally:
            os.close(descriptor)

    @property
    def found(self) -> list[str]:
        """What was wrong, each once, sorted."""
        return sorted({json.loads(line) for line in self._file.read_bytes().splitlines()})


@contextmanager
def unreadable_files(strict: bool = False) -> Iterator[Unreadable]:
    """An `Unreadable` for the time of a run."""
    with tempfile.TemporaryDirectory(prefix="sam-edge-") as scratch:
        file = Path(scratch) / "unreadable.jsonl"
        file.touch()
        yield Unreadable(file, strict)


class Noted(Dataset[Item]):
    """A dataset that notes what of it cannot be read, files and annotations, by whatever index it is asked for."""

    def __init__(self, whole: Dataset[Item], unreadable: Unreadable) -> None:
        self.strict = whole.strict
        self._whole, self._unreadable = whole, unreadable

    @property
    def names(self) -> list[str]:
        return self._whole.names

    def __getitem__(self, index: int) -> Item:
        return self._unreadable.read(self._whole, index)


def left_out(reasons: Sequence[str]) -> str:
    """What a command says of them behind its result."""
    return f"; {len(reasons)} unreadable left out, the first: {reasons[0]}" if reasons else ""
