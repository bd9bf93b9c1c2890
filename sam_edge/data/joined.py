"""Several labelled data sets as one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sam_edge.data.open import open_labelled
from sam_edge.data.sample import LabelledDataset, LabelledImage
from sam_edge.errors import DataError


class Joined(LabelledDataset):
    """The data sets one after another; each picture's name begins with its data set's, and splits as it did alone."""

    def __init__(self, parts: Mapping[str, LabelledDataset]) -> None:
        self.parts = dict(parts)
        self._items = [(part, number) for part in self.parts.values() for number in range(len(part))]
        self._names = [f"{label}/{name}" for label, part in self.parts.items() for name in part.names]

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> LabelledImage:
        part, number = self._items[index]
        return replace(part[number], name=self._names[index])


def open_joined(specs: Sequence[str]) -> Joined:
    """Open what `open_labelled` takes, each named by its last folder.

    Raises:
        DataError: see `open_labelled`; or two of one name.
    """
    labels = [Path(spec).name if Path(spec).exists() else spec.replace(":", "-") for spec in specs]
    if len(set(labels)) < len(labels):
        raise DataError(f"--data {', '.join(specs)}: two are called alike, and their pictures could not be told apart.")
    return Joined({label: open_labelled(spec) for label, spec in zip(labels, specs, strict=True)})
