"""What people may write after `--data`: a folder, a COCO file, tar shards, or `synthetic`."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sam_edge.data.coco import CocoInstances
from sam_edge.data.dataset import Dataset
from sam_edge.data.folder import ImageFolder
from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.sample import LabelledDataset, LabelledImage
from sam_edge.data.shards import TarShards
from sam_edge.data.split import Split
from sam_edge.errors import DataError
from sam_edge.halves import workshop

DEFAULT_SCENES = 1000
"""Scenes that `synthetic` stands for when it names no count."""


def open_labelled(
    spec: str | Path, split: Split = "all", strict: bool = False, images_root: Path | None = None
) -> LabelledDataset:
    """Images with masks, by what `spec` is.

    A folder of image and JSON pairs opens as SA-1B; a `.json` file, or a folder with `instances*.json` or
    `annotations/instances*.json`, as COCO; a `.tar`, or a folder with `*.tar`, as shards of SA-1B; `synthetic`,
    `synthetic:COUNT` and `synthetic:COUNT:SEED` are generated scenes. `images_root` is the folder of a COCO file's
    pictures where they do not lie near it. Raises DataError for anything else.
    """
    if images_root is not None:
        return CocoInstances(_coco_file(spec), images_root, split, strict)
    scenes = _synthetic(spec, split)
    if scenes is not None:
        return scenes
    path = Path(spec)
    file = find_coco(path)
    if file is not None:
        return CocoInstances(file, split=split, strict=strict)
    if path.is_file() and path.suffix.lower() == ".tar":
        return TarShards(path, split, strict)
    if not path.is_dir():
        raise DataError(
            f"{spec}: no such data; allowed are a folder of image and JSON pairs (SA-1B), a COCO instances "
            ".json or its folder, a .tar of such pairs or a folder of them, and synthetic[:COUNT[:SEED]]."
        )
    return TarShards(path, split, strict) if any(path.glob("*.tar")) else Sa1bFolder(path, split, strict)


def find_coco(path: Path) -> Path | None:
    """The COCO file that a path is or holds; None where it is or holds none.

    Raises:
        DataError: a folder that holds several.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    found = sorted(path.glob("instances*.json")) + sorted(path.glob("annotations/instances*.json"))
    if len(found) > 1:
        # Guessing train or val for the user would quietly measure on the wrong one.
        raise DataError(f"{path}: holds {', '.join(file.name for file in found)}; name the one to use.")
    return found[0] if found else None


def _coco_file(spec: str | Path) -> Path:
    """Raises DataError for what is no COCO file and holds none."""
    file = find_coco(Path(spec))
    if file is None:
        raise DataError(f"{spec}: a folder of images belongs to COCO instances json alone; leave it out.")
    return file


def open_some(
    spec: str | Path,
    split: Split = "all",
    strict: bool = False,
    *,
    limit: int | None,
    seed: int,
    images_root: Path | None = None,
) -> Dataset[LabelledImage]:
    """Like `open_labelled`, but only `limit` of the pictures, drawn by the seed; None takes all."""
    dataset = open_labelled(spec, split, strict, images_root)
    return dataset if limit is None else dataset.sample(limit, np.random.default_rng(seed))


def open_images(
    spec: str | Path, strict: bool = False, limit: int | None = None
) -> Dataset[tuple[str, UInt8[np.ndarray, "h w 3"]]]:
    """Images without labels, as (name, RGB): a folder, or the pictures of `synthetic[:COUNT[:SEED]]`.

    `limit` keeps the first so many. Raises DataError for anything else.
    """
    scenes = _synthetic(spec, "all")
    return ImageFolder(spec, strict, limit) if scenes is None else PicturesOnly(scenes, limit)


class PicturesOnly(Dataset[tuple[str, UInt8[np.ndarray, "h w 3"]]]):
    """A labelled dataset seen as an unlabelled one."""

    def __init__(self, labelled: Dataset[LabelledImage], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}.")
        self._labelled = labelled
        self._names = labelled.names[:limit]

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> tuple[str, UInt8[np.ndarray, "h w 3"]]:
        # Through the range, so that a negative index counts from the limited end.
        sample = self._labelled[range(len(self._names))[index]]
        return sample.name, sample.image


def _synthetic(spec: str | Path, split: Split) -> LabelledDataset | None:
    """The scenes that `spec` asks for; None if it is about files."""
    word, *numbers = str(spec).split(":")
    if word != "synthetic":
        return None
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise DataError(f"{spec}: expected synthetic, synthetic:COUNT or synthetic:COUNT:SEED in whole numbers.")
    count = int(numbers[0]) if numbers else DEFAULT_SCENES
    seed = int(numbers[1]) if len(numbers) == 2 else 0
    scenes: LabelledDataset = workshop("sam_edge.scenes.synthetic", str(spec)).SyntheticScenes(count, seed, split=split)
    return scenes
