"""SA-1B's tars as they are downloaded, and any tar of NAME.jpg beside NAME.json (webdataset's layout), not unpacked.

The webdataset library reads a shard from front to back, so that picture i depends on all that were read before it.
Here an index of offsets, built once per shard when it is first touched, reads any picture with two seeks.
"""

import hashlib
import io
import json
import os
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from sam_edge.data.dataset import Dataset
from sam_edge.data.image import IMAGE_SUFFIXES, decode_image
from sam_edge.data.sa1b import parse_sa1b
from sam_edge.data.sample import LabelledDataset, LabelledImage
from sam_edge.data.split import Split, is_val, select
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.files import atomic_file, cache_folder

WINDOW = 512
"""Pictures of a shard that lie close enough together to be read as one stretch, about 0.5 GB of SA-1B."""
OPEN_INDEXES = 32
"""Shards whose index is kept in memory."""


@dataclass(frozen=True)
class ShardIndex:
    """Where the labelled pictures of one shard lie."""

    names: list[str]
    """Pictures that have a JSON member of the same stem, in the order of the tar."""
    places: Int64[np.ndarray, "n 4"]
    """Offset and size of the picture, offset and size of its JSON, in bytes."""

    def only(self, split: Split) -> "ShardIndex":
        """The pictures of a split."""
        if split == "all":
            return self
        kept = [place for place, name in enumerate(self.names) if is_val(name) == (split == "val")]
        return ShardIndex([self.names[place] for place in kept], self.places[kept])


class TarShards(LabelledDataset):
    """The labelled pictures of one tar, or of all `*.tar` of a folder.

    `draw` touches one shard alone, so that training on a thousand of them begins at once; `names`, `len` and plain
    indices need the index of every shard. Raises DataError for a folder without a tar, and on access for a broken
    shard, picture or JSON.
    """

    def __init__(
        self, root: str | Path, split: Split = "all", strict: bool = False, shards: Sequence[Path] | None = None
    ) -> None:
        self.root = Path(root)
        self.strict = strict
        select([], split)
        self.split: Split = split
        files = shards or ([self.root] if self.root.is_file() else sorted(self.root.glob("*.tar")))
        # macOS leaves `._shard.tar` files that are no tars beside the real ones
        self.shards = [file for file in files if not file.name.startswith(".")]
        if not self.shards:
            raise DataError(f"{self.root}: holds no .tar file; unpack .tar.gz to .tar, which can be read anywhere in.")
        # a shard's bytes say how many pictures it holds before it is opened
        self._cumulative = np.cumsum([file.stat().st_size for file in self.shards])
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()

    @cached_property
    def _all(self) -> tuple[list[str], list[tuple[int, int]]]:
        names: list[str] = []
        keys: list[tuple[int, int]] = []
        for shard in range(len(self.shards)):
            found = self._index(shard).names
            names += found
            keys += [(shard, place) for place in range(len(found))]
        if not names:
            raise DataError(
                f"{self.root}: no picture with a .json member of the same name falls into split {self.split}: "
                "use split all, or add pictures."
            )
        return names, keys

    @property
    def names(self) -> list[str]:
        return self._all[0]

    def draw(self, rng: np.random.Generator, shared: np.random.Generator) -> tuple[int, int]:
        """A random picture as (shard, place); pictures drawn with the same `shared` lie in one stretch of a shard."""
        shard = int(np.searchsorted(self._cumulative, shared.integers(self._cumulative[-1]), "right"))
        count = len(self._index(shard).names)
        if count == 0:
            raise DataError(f"{self.shards[shard]}: holds no labelled picture of split {self.split}.")
        start = int(shared.integers(count))
        return shard, (start + int(rng.integers(min(count, WINDOW)))) % count

    def sample(self, count: int, rng: np.random.Generator) -> Dataset[LabelledImage]:
        """`count` random pictures, of as few shards as hold so many."""
        chosen: list[Path] = []
        held = 0
        for shard in rng.permutation(len(self.shards)):
            if held >= count:
                break
            held += len(self._index(int(shard)).names)
            chosen.append(self.shards[shard])
        fewer = TarShards(self.root, self.split, self.strict, sorted(chosen))
        return super(TarShards, fewer).sample(count, rng)

    def __getitem__(self, index: int | tuple[int, int]) -> LabelledImage:
        """A picture by its place in `names`, or as `draw` gives it."""
        shard, place = self._all[1][index] if isinstance(index, int) else index
        file, found = self.shards[shard], self._index(shard)
        name, (offset, size, json_offset, json_size) = found.names[place], found.places[place].tolist()
        try:
            with file.open("rb") as tar:
                tar.seek(offset)
                picture = tar.read(size)
                tar.seek(json_offset)
                text = tar.read(json_size)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
        image = decode_image(io.BytesIO(picture), f"{file}: {name}")
        height, width = image.shape[:2]
        where = f"{file}: {PurePosixPath(name).with_suffix('.json')}"
        return LabelledImage(name, image, *parse_sa1b(text, where, height, width, strict=self.strict))

    def _index(self, shard: int) -> ShardIndex:
        found = self._indexes.get(shard)
        if found is None:
            try:
                found = read_index(self.shards[shard])
            except DataError as error:
                if self.strict:
                    raise
                # one bad download of a thousand does not end a training, but its owner should know
                warnings.warn(str(error), stacklevel=2)
                found = ShardIndex([], np.zeros((0, 4), np.int64))
            found = self._indexes[shard] = found.only(self.split)
            if len(self._indexes) > OPEN_INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(shard)
        return found


def read_index(tar: Path) -> ShardIndex:
    """The index of a shard: from the cache folder if the shard has not changed since, else built and left there.

    Raises:
        DataError: no tar, or one that was cut off.
    """
    path = tar.absolute()
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{tar}: cannot be read ({error.strerror}).") from error
    state = [stat.st_size, stat.st_mtime_ns]
    saved = cache_folder() / "shards" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(saved.read_text(encoding="utf-8"))
        if content["state"] == state:
            return ShardIndex(content["names"], np.array(content["places"], np.int64).reshape(-1, 4))
    index = build_index(tar)
    # a cache folder that cannot be written costs time only
    with suppress(SamEdgeError, OSError), atomic_file(saved) as part:
        content = {"shard": str(path), "state": state, "names": index.names, "places": index.places.tolist()}
        part.write_text(json.dumps(content), encoding="utf-8")
    return index


def build_index(tar: Path) -> ShardIndex:
    """Walk a shard's headers; its pictures and JSON are not read.

    Raises:
        DataError: no tar, or one that was cut off.
    """
    pictures: dict[str, str] = {}
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isreg() or name.name.startswith("."):
                    continue
                members[str(name)] = (member.offset_data, member.size)
                if name.suffix.lower() in IMAGE_SUFFIXES:
                    pictures[str(name)] = str(name.with_suffix(".json"))
                # tarfile keeps every header it has seen
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar}: not a whole, uncompressed tar ({error}); download it again, or unpack .gz.") from error
    names = [name for name, label in pictures.items() if label in members]
    places = np.array([[*members[name], *members[pictures[name]]] for name in names], np.int64)
    return ShardIndex(names, places.reshape(-1, 4))
