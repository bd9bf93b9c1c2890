"""Writing that cannot leave half a result: everything is written beside its target and renamed onto it."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sam_edge.errors import SamEdgeError

OURS = (
    "config.json",
    "model.json",
    "layout.json",
    "engine.json",
    "bundle.json",
    "report.json",
    "bench.json",
    "masks.json",
    "masks.jsonl",
    "site.json",
)
"""Files that show a folder to be sam-edge's own."""


def cache_folder() -> Path:
    """`$SAM_EDGE_CACHE`, or `~/.cache/sam-edge`."""
    return Path(os.environ.get("SAM_EDGE_CACHE") or Path.home() / ".cache" / "sam-edge").expanduser()


def check_target(target: Path) -> None:
    """Refuse what `atomic_folder` would refuse, before work of hours is done for it.

    Raises:
        SamEdgeError: `target` is a file, or a folder that holds something else than sam-edge's own.
    """
    if target.is_file():
        raise SamEdgeError(f"{target} is a file: --out needs a folder.")
    if target.is_dir() and any(target.iterdir()) and not _is_ours(target):
        raise SamEdgeError(f"{target} is not empty and was not written by sam-edge: choose another --out.")


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well, and vanishes when it does not.

    An existing `target` is replaced only if it is empty or was written by sam-edge (it holds one of `OURS`), so that
    a mistyped `--out ~/photos` destroys nothing.

    Raises:
        SamEdgeError: `target` is a file, holds something else, or the disk refuses the write.
    """
    target = Path(target).absolute()
    check_target(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise SamEdgeError(f"cannot write {target}: {error.strerror or error}.") from error
    try:
        work.chmod(0o755)
        yield work
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            os.rename(target, retired / "old")
            os.rename(work, target)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.rename(work, target)
    except OSError as error:
        raise SamEdgeError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Yield a path beside `target` that replaces `target` when the block ends well.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    target = Path(target).absolute()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, target)
    except OSError as error:
        raise SamEdgeError(f"cannot write {target}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            part.unlink()


def sha256_of(path: str | Path) -> str:
    """Hex sha256 of a file, or of a folder's files in name order (names included)."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file_path.relative_to(path).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(sha256_of(file_path)))
    return digest.hexdigest()


def _is_ours(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in OURS)
