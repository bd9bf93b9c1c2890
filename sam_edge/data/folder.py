"""A folder of the user's own photos, without labels."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sam_edge.data.dataset import Dataset
from sam_edge.data.image import IMAGE_SUFFIXES, read_image
from sam_edge.errors import DataError


class ImageFolder(Dataset[tuple[str, UInt8[np.ndarray, "h w 3"]]]):
    """The images of a folder and its subfolders, sorted by relative path, as (name, RGB array).

    `limit` keeps the first so many. Raises DataError at construction if the folder is missing or empty.
    """

    def __init__(self, root: str | Path, strict: bool = False, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise DataError(f"limit must be at least 1, got {limit}.")
        self.root = Path(root)
        self.strict = strict
        self._names = list_images(self.root)[:limit]

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> tuple[str, UInt8[np.ndarray, "h w 3"]]:
        name = self._names[index]
        return name, read_image(self.root / name)


def list_images(root: Path) -> list[str]:
    """Relative paths (forward slashes) of the images under a folder, sorted; hidden files are left out.

    Raises DataError if the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a folder of images.")
    # Sorted as text: the same order on every file system, which seeds and limits rely on.
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        # macOS leaves `._photo.jpg` files that are no images beside the real ones, notebooks copies in hidden folders
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )
    if not names:
        raise DataError(f"{root}: holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return names
