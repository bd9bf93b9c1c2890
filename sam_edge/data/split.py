"""Train or val, decided by the file name alone, so that every command and machine splits alike."""

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Literal

from sam_edge.errors import DataError

Split = Literal["train", "val", "all"]


def is_val(file_name: str) -> bool:
    """Whether a file belongs to val: sha256 of the base name's bytes (UTF-8), as an integer, is divisible by 5."""
    base_name = PurePosixPath(file_name).name
    return int(sha256(os.fsencode(base_name)).hexdigest(), 16) % 5 == 0


def select(names: Sequence[str], split: Split) -> list[str]:
    """The names of one split, in the order given. Raises DataError if a non-empty list leaves none."""
    if split not in ("train", "val", "all"):
        raise DataError(f"split must be train, val or all, got {split!r}.")
    chosen = [name for name in names if split == "all" or is_val(name) == (split == "val")]
    if names and not chosen:
        raise DataError(f"none of the {len(names)} images falls into split {split}: use split all, or add images.")
    return chosen
