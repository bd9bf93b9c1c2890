"""Reading a folder of embeddings that `embed_pictures` has written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sam_edge.compress.embeddings import INDEX, SCHEMA, EmbedOptions, shard_files
from sam_edge.compress.packing import unpack
from sam_edge.errors import CompressionError
from sam_edge.files import parse_json, sha256_of


@dataclass(frozen=True)
class StoredView:
    """What the teacher made of one view."""

    embedding: Float[Tensor, "c g g"]
    fingerprint: UInt8[np.ndarray, "16"]
    masks: Bool[np.ndarray, "k m m"]
    """The teacher's own masks; none where none were looked for or found."""


class StoredEmbeddings:
    """A whole store, random access by picture and view; files are opened when they are first needed."""

    def __init__(
        self, folder: Path, *, verify: bool = True, on_shard: Callable[[int, int], None] | None = None
    ) -> None:
        """`verify` reads every shard and compares its sha256.

        Raises:
            CompressionError: no store, one that is not finished, or a shard that was changed.
        """
        self.folder = folder
        try:
            self.index: dict[str, Any] = parse_json((folder / INDEX).read_bytes())
            if self.index["schema"] != SCHEMA:
                raise CompressionError(f"{folder} was written by another version of sam-edge: embed again.")
            self.options = EmbedOptions(**self.index["options"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompressionError(f"{folder} holds no embeddings: write them with `sam-edge embed`.") from error
        self.names: list[str] = self.index["names"]
        self.shards = -(-len(self.names) * self.options.views // self.options.shard_views)
        self.notes = [self._note(shard) for shard in range(self.shards)]
        if verify:
            for shard, note in enumerate(self.notes):
                file = shard_files(folder, shard)[0]
                if not file.is_file() or sha256_of(file) != note["sha256"]:
                    raise CompressionError(f"{file} is not what was written: delete it and its .json, and embed again.")
                if on_shard is not None:
                    on_shard(shard + 1, self.shards)
        self._open: dict[int, Any] = {}

    @property
    def error(self) -> float:
        """Squared error of the kept values over the variance of the teacher's."""
        spread = sum(note["squared_spread"] for note in self.notes)
        return sum(note["squared_error"] for note in self.notes) / spread if spread else 0.0

    @property
    def masks(self) -> int:
        """Own masks of the teacher in the whole store."""
        return sum(note["masks"] for note in self.notes)

    @property
    def stored_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard_files(self.folder, shard)[0].stat().st_size for shard in range(self.shards))

    def view(self, picture: int, view: int) -> StoredView | None:
        """What is kept of a view; None where the picture could not be read."""
        shard, place = divmod(picture * self.options.views + view, self.options.shard_views)
        file = self._file(shard)
        prints = file.get_slice("fingerprints")[place].numpy()
        if not prints.any():
            return None
        values = file.get_slice("values")[place : place + 1]
        scales = file.get_slice("scales")[place : place + 1] if self.options.precision == "int8" else None
        first, last = file.get_slice("mask_starts")[place : place + 2].tolist()
        size = self.index["mask_size"]
        bits = file.get_slice("mask_bits")[first:last].numpy() if last > first else np.zeros((0, 0), np.uint8)
        masks = np.unpackbits(bits, axis=1, count=size * size) if last > first else np.zeros((0, size * size))
        return StoredView(unpack(values, scales)[0], prints, masks.reshape(-1, size, size).astype(bool))

    def _note(self, shard: int) -> dict[str, Any]:
        try:
            note = parse_json(shard_files(self.folder, shard)[1].read_bytes())
            if not {"sha256", "squared_error", "squared_spread", "masks"} <= note.keys():
                raise ValueError("it lacks what a shard's note holds")
            return note
        except (ValueError, AttributeError) as error:
            raise CompressionError(
                f"{self.folder}: the note of shard {shard} is not what was written: delete it, and embed again."
            ) from error
        except OSError as error:
            raise CompressionError(
                f"{self.folder} is not finished, shard {shard} of {self.shards} is missing: "
                "run the same `sam-edge embed` again."
            ) from error

    def _file(self, shard: int) -> Any:
        if shard not in self._open:
            path = shard_files(self.folder, shard)[0]
            try:
                self._open[shard] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise CompressionError(f"{path} cannot be read: delete it and its .json, and embed again.") from error
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        # open files cannot be sent to another process
        return {**self.__dict__, "_open": {}}
