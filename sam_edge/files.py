"""Writing that cannot leave half a result: everything is written beside its target and renamed onto it."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    "card.json",
)
"""Files that show a folder to be sam-edge's own."""


def cache_folder() -> Path:
    """`$SAM_EDGE_CACHE`, or `~/.cache/sam-edge`."""
    return Path(os.environ.get("SAM_EDGE_CACHE") or Path.home() / ".cache" / "sam-edge").expanduser()


_WRITING = r"\.(?:[a-z0-9_]{8}\.(?:part|old)|\d+\.part)"
"""How the names end that `atomic_folder` and `atomic_file` write under."""
_LOCKED = (errno.EAGAIN, errno.EACCES)
"""What systems say of a lock that another process holds."""


def date() -> str:
    """The second it is, in ISO 8601 and UTC; the one that `SOURCE_DATE_EPOCH` says where it is set.

    Two runs of one command then write the same bytes: https://reproducible-builds.org/specs/source-date-epoch/.

    Raises:
        SamEdgeError: a `SOURCE_DATE_EPOCH` that is no number of seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = datetime.now(UTC) if not given else datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise SamEdgeError(f"SOURCE_DATE_EPOCH must be seconds since 1970, got {given!r}: unset it.") from error
    return now.isoformat(timespec="seconds")


@contextmanager
def claimed(target: str | Path) -> Iterator[None]:
    """Hold `target` for this process alone while the block runs, having put right what a killed one left of it.

    The system holds the lock, of a file beside `target`, and lets go of it however the process ends: none is ever
    stale. The processes of a torchrun, which write one target together, have one each.

    Raises:
        SamEdgeError: another process holds it, or the disk refuses it.
    """
    target = Path(target).absolute()
    if not target.name:
        raise SamEdgeError(f"cannot write {target}: it has no folder around it; choose another --out.")
    rank = os.environ.get("RANK", "0")
    lock = target.with_name(f".{target.name}.lock" if rank == "0" else f".{target.name}.{rank}.lock")
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held = _take(lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        # a folder that is mounted where nothing else can be written is filled, and locked, itself
        if not (target.is_dir() and os.access(target, os.W_OK)):
            raise SamEdgeError(f"cannot write {target}: {error.strerror or error}.") from error
        held = _take(target, os.O_RDONLY)
    if held is None:
        raise SamEdgeError(f"{target} is being written by another process: wait for it, or choose another --out.")
    try:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            put_right(target)
        yield
    finally:
        # while it is held: a process that opens the file from here on finds that it is no longer the one
        with suppress(OSError):
            lock.unlink()
        os.close(held)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _take(lock: Path, how: int) -> int | None:
    """A descriptor that locks a file or folder, opened so; None where another process holds it."""
    while True:
        descriptor = os.open(lock, how, 0o644)
        if not _locked(descriptor):
            os.close(descriptor)
            return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        # its last holder has removed it meanwhile
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # some network file systems have no locks; what is written there is still whole
        return error.errno not in _LOCKED
    return True


def put_right(target: Path) -> None:
    """What a killed process left: a folder that it moved aside for one that never came is brought back, what it was
    writing is removed."""
    name = re.escape(target.name)
    ours = re.compile(rf"(?:\.{name}|\.\.{name}\.state\.\w+){_WRITING}")
    left = [path for path in target.parent.iterdir() if ours.fullmatch(path.name)] if target.parent.is_dir() else []
    for path in left:
        if path.suffix == ".old" and (path / "old").exists() and not target.exists():
            os.rename(path / "old", target)
    for path in left:
        _remove(path)
    if _is_ours(target):
        sweep(target)


def sweep(folder: Path) -> None:
    """Remove what a killed process was writing in a folder of sam-edge's own."""
    unfinished = re.compile(rf"\..+{_WRITING}")
    for path in list(folder.rglob(".*")) if folder.is_dir() else ():
        if unfinished.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


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


def parse_json(text: str | bytes) -> Any:
    """What a file of anybody's says; bytes may be in UTF-8, 16 or 32, with a byte-order mark or without.

    Raises ValueError for what is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


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
