"""The way over a data set that every protocol takes: a picture at a time, kept as it is done, in parts if need be."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, Generic, TypeVar

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import DataError
from sam_edge.journal import Journal

Found = TypeVar("Found")
"""What a protocol finds of one picture: plain values, as JSON keeps them."""
LOOKS_EVERY_S = 0.5
"""How often the first of several processes looks whether the others are done."""


@dataclass(frozen=True)
class Share:
    """One process's part of the pictures: each `count`-th, from number `index` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Share":
        """`2/4` is the second of four.

        Raises:
            DataError: anything else than two whole numbers, the first of them from 1 to the second.
        """
        given = re.fullmatch(r"(\d+)/(\d+)", text)
        if given is None or not 1 <= int(given[1]) <= int(given[2]):
            raise DataError(f"a shard must be K/N with K from 1 to N, such as 2/4, got {text}.")
        return cls(int(given[1]) - 1, int(given[2]))

    @classmethod
    def of_torchrun(cls) -> "Share | None":
        """This process's, where torchrun started several: by its environment alone, without torch."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        return cls(int(os.environ.get("RANK", "0")), count) if count > 1 else None

    def of(self, names: Sequence[str]) -> list[int]:
        """Numbers of this part's pictures."""
        return list(range(self.index, len(names), self.count))


@dataclass(frozen=True)
class Kept:
    """Where results are kept as they are found, and which pictures this process measures."""

    file: Path | None = None
    """A file of JSON lines; a part writes its own beside it, `results.2-of-4.jsonl`, and reads the others'."""
    key: Mapping[str, Any] = field(default_factory=dict)
    """What the results are of; a file of another key is refused."""
    share: Share = field(default_factory=Share)
    waits: bool = False
    """Wait for the other parts, which run at the same time."""

    def __post_init__(self) -> None:
        if self.file is None and self.share.count > 1:
            raise DataError("parts of a data set meet in a file: give --results, too.")

    def journal(self, file: Path) -> Journal:
        """One of the files."""
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True, default=str).encode()).hexdigest()
        return Journal(file, {"key": digest, "of": dict(self.key)}, "name")

    @property
    def own(self) -> Path | None:
        """The file that this process writes."""
        if self.file is None or self.share.count == 1:
            return self.file
        return self.file.with_name(
            f"{self.file.stem}.{self.share.index + 1}-of-{self.share.count}{self.file.suffix or '.jsonl'}"
        )

    def files(self) -> list[Path]:
        """All that there are: the whole's and the parts'."""
        if self.file is None:
            return []
        part = re.compile(re.escape(self.file.stem) + r"\.\d+-of-\d+" + re.escape(self.file.suffix or ".jsonl"))
        beside = sorted(self.file.parent.glob("*")) if self.file.parent.is_dir() else []
        return [file for file in beside if file == self.file or part.fullmatch(file.name)]

    def found(self) -> dict[str, dict[str, Any]]:
        """The lines of all files, by picture."""
        return {line["name"]: line for file in self.files() for line in self.journal(file).lines()}


@dataclass(frozen=True)
class Walked(Generic[Found]):
    """What is known of a data set's pictures after a walk."""

    found: dict[str, Found]
    """By picture, in the order of the data set."""
    data_sha256: str
    """Of the pictures measured: pixels and labels."""
    skipped: int = 0
    """Pictures that could not be read."""
    left: int = 0
    """Pictures that other parts have not measured yet."""


def walk(
    names: Sequence[str],
    measure: Callable[[list[int]], Iterator[tuple[int, str, Found]]],
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> Walked[Found]:
    """Measure what no file holds yet of this process's share, and return what all have found.

    Args:
        names: of all pictures, by which results are known.
        measure: of pictures by number, in turn, each one's number, the sha256 of what was read, and what was found.
        on_image: called after each picture of the share.

    Raises:
        SamEdgeError: a file of something else.
    """
    kept, on_image = kept or Kept(), on_image or (lambda: None)
    known = _told_apart(names)
    lines = kept.found()
    share = kept.share.of(known)
    # a picture that could not be read is tried again
    pending = [number for number in share if lines.get(known[number], {}).get("found") is None]
    for _ in range(len(share) - len(pending)):
        on_image()
    with ExitStack() as stack:
        log = None if kept.own is None else stack.enter_context(kept.journal(kept.own))
        measured = set()
        for number, sha256, found in measure(pending):
            line = lines[known[number]] = {"name": known[number], "sha256": sha256, "found": found}
            measured.add(number)
            if log is not None:
                log.add(line)
            on_image()
        for number in (number for number in pending if number not in measured):
            line = lines[known[number]] = {"name": known[number], "sha256": "", "found": None}
            # others would wait for it
            if log is not None and kept.share.count > 1:
                log.add(line)
    while kept.waits and any(name not in lines for name in known):
        sleep(LOOKS_EVERY_S)
        lines = kept.found()
    reached = [lines[name] for name in known if name in lines]
    done = {line["name"]: line for line in reached if line["found"] is not None}
    digest = hashlib.sha256("".join(line["sha256"] for line in done.values()).encode()).hexdigest()
    found_by_name = {name: line["found"] for name, line in done.items()}
    return Walked(found_by_name, digest, len(reached) - len(done), len(known) - len(reached))


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, of which a second one of the same has its number behind it."""
    seen: dict[str, int] = {}
    known = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        known.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return known


def walk_labelled(
    dataset: Dataset[LabelledImage],
    measure: Callable[[LabelledImage], Found],
    kept: Kept | None = None,
    on_image: Callable[[], None] | None = None,
) -> Walked[Found]:
    """`walk` over a labelled data set; what cannot be read is left out and counted, as `Dataset` does."""

    def each(numbers: list[int]) -> Iterator[tuple[int, str, Found]]:
        for number, sample in readable(dataset, numbers):
            yield number, sha256_of_sample(sample), measure(sample)

    return walk(dataset.names, each, kept, on_image)


def readable(dataset: Dataset[Any], numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """The items of these numbers that can be read, each with its number; one warning at the end tells of the others."""
    chosen = dataset.subset(numbers)
    reached = iter(numbers)
    before = 0
    for item in chosen:
        # as many as were skipped since stand between the last one and this
        for _ in range(chosen.skipped - before):
            next(reached)
        before = chosen.skipped
        yield next(reached), item
    dataset.skipped, dataset.unreadable = chosen.skipped, chosen.unreadable


def data_sha256(dataset: Dataset[LabelledImage]) -> str:
    """Of the pictures and labels that can be read, as a walk over all of them tells it."""
    return walk_labelled(dataset, lambda _: True).data_sha256


def sha256_of_sample(sample: LabelledImage) -> str:
    """Of its pixels and labels."""
    digest = hashlib.sha256(sample.image.tobytes())
    for annotation in sample.annotations:
        counts = annotation.rle["counts"]
        digest.update(counts if isinstance(counts, bytes) else str(counts).encode())
        digest.update(repr((annotation.bbox_xywh, annotation.point_xy)).encode())
    return digest.hexdigest()
