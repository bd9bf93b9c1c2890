"""Weights from the network into a cache: URLs into sam-edge's folder, hub models through huggingface_hub."""

import http.client
import re
import urllib.request
from pathlib import Path
from typing import IO

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sam_edge.errors import CheckpointError
from sam_edge.files import atomic_file, cache_folder, sha256_of
from sam_edge.segment.known import KnownModel

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30


def fetch(known: KnownModel) -> Path:
    """The local file of a known model's weights, downloaded once.

    A file in `cache_folder()` is used wherever it came from, if its hash is right: that is how weights reach
    a machine without network.

    Raises:
        CheckpointError: no network, no such file, or a file whose hash is wrong.
        SamEdgeError: the disk refuses the write.
    """
    target = _target(known)
    if target.is_file():
        _check(target, known.sha256_prefix, f"delete {target} and try again")
        return target
    if not known.is_url:
        return _from_hub(known, target)
    with atomic_file(target) as part:
        _stream(known, target, part)
        _check(part, known.sha256_prefix, "the file there, or the way to it, has changed", known.source)
    return target


def _target(known: KnownModel) -> Path:
    # the hub calls every model's file model.safetensors
    name = known.file_name if known.is_url else f"{known.name}{Path(known.file_name).suffix}"
    return cache_folder() / name


def _check(path: Path, prefix: str | None, remedy: str, shown: str | None = None) -> None:
    if prefix is None:
        return
    digest = sha256_of(path)
    if not digest.startswith(prefix):
        raise CheckpointError(
            f"{shown or path} has sha256 {digest[:16]}..., which should begin with {prefix[:16]}: {remedy}."
        )


def _stream(known: KnownModel, target: Path, part: Path) -> None:
    try:
        request = urllib.request.Request(known.source, headers={"User-Agent": "sam-edge"})
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(known, target, error) from error
    size = int(response.headers.get("Content-Length") or 0)
    with response, part.open("wb") as file, _progress() as progress:
        task = progress.add_task(known.file_name, total=size or None)
        while chunk := _read(response, known, target):
            file.write(chunk)
            progress.advance(task, len(chunk))
        written = file.tell()
    if size and written != size:
        raise _unreachable(known, target, f"{written} of {size} bytes arrived")


def _read(response: IO[bytes], known: KnownModel, target: Path) -> bytes:
    # apart from the writing, so that a broken connection is not reported as a full disk
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(known, target, error) from error


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _from_hub(known: KnownModel, target: Path) -> Path:
    try:
        path = Path(hf_hub_download(known.source, known.file_name, local_files_only=True))
    except LocalEntryNotFoundError:
        path = _downloaded_from_hub(known, target)
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        # the hub's cache names large files by the sha256 it reported, but does not hash what arrived
        _check(path, blob.name, f"delete {blob} and try again")
    return path


def _downloaded_from_hub(known: KnownModel, target: Path) -> Path:
    try:
        # fails at once where there is no network; the download would print five retries first
        get_hf_file_metadata(hf_hub_url(known.source, known.file_name), timeout=TIMEOUT_SECONDS)
        return Path(hf_hub_download(known.source, known.file_name))
    # which exceptions a failed request raises differs between the hub client's versions and transports
    except Exception as error:
        raise _unreachable(known, target, error) from error


def _unreachable(known: KnownModel, target: Path, reason: Exception | str) -> CheckpointError:
    url = known.source if known.is_url else hf_hub_url(known.source, known.file_name)
    # urllib wraps the cause: "<urlopen error ...>"
    reason = getattr(reason, "reason", reason)
    words = str(reason).strip().splitlines()[:1] or [type(reason).__name__]
    return CheckpointError(
        f"{known.name} could not be downloaded ({words[0]}): get {url} on a machine with network "
        f"and put it at {target}, or give the file's path as MODEL."
    )
