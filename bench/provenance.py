"""Where a result comes from: what was run, of which model, on which data, on which machine, by which code.

One function that every command and study calls, so that a number can be traced and made again, and so that a table can
tell whether it is still of the model that ships.
"""

import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sam_edge
from sam_edge.bench.hardware import hardware as this_machine
from sam_edge.bench.memory import WEIGHT_SUFFIXES
from sam_edge.files import atomic_file, sha256_of
from sam_edge.halves import workshop_is_here
from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.segment.known import KNOWN, PACKAGED, WEIGHTS, shipped_folder

RANDOM = "random:"


def provenance(
    models: Mapping[str, str | None] | None = None,
    data: Mapping[str, str | None] | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain values for JSON, of this process.

    Args:
        models: sha256 of each MODEL that took part, as `model_sha256` gives it.
        data: sha256 of each data set, of the pictures and labels that were used.
        hardware: what `hardware()` tells, with whatever else was noted of the machine; asked now without it.

    Returns:
        `command`, `date` (UTC), `version`, `commit` (of the checkout that ran, None of an installed package), `changed`
        (whether that checkout had changes that no commit holds), `models`, `data`, `hardware` and `clocks`.
    """
    commit, changed = _checkout(Path(sam_edge.__file__).resolve().parents[1])
    return {
        "command": command(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": sam_edge.__version__,
        "commit": commit,
        "changed": changed,
        "models": dict(models or {}),
        "data": dict(data or {}),
        "hardware": dict(hardware or this_machine()),
        "clocks": clocks(),
    }


def model_sha256(spec: str | Path) -> str | None:
    """What tells a MODEL's weights from others'; None of what lies in a cache of downloads.

    A file's own sha256, a checkpoint's that of its weights' file, an exported folder's that over all its weights' files
    (names and hashes, in order). A `random:NAME` is known by its architecture, which its times depend on.
    """
    name = str(spec)
    if name.startswith(RANDOM):
        known = KNOWN.get(name.removeprefix(RANDOM))
        if known is None:
            return None
        return hashlib.sha256(json.dumps(asdict(known.config), sort_keys=True).encode()).hexdigest()
    path = Path(name).expanduser()
    if name in KNOWN:
        if KNOWN[name].source != PACKAGED:
            return None
        path = shipped_folder(name)
    if path.is_file():
        return sha256_of(path)
    if not path.exists() and shipped_folder(name).is_dir():
        # nano-onnx: the graphs that nano is where torch is absent
        path = shipped_folder(name)
    if (path / WEIGHTS).is_file():
        return sha256_of(path / WEIGHTS)
    files = sorted(file for file in path.glob("*") if file.suffix in WEIGHT_SUFFIXES) if path.is_dir() else []
    if not files:
        return None
    return hashlib.sha256("".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()).hexdigest()


def made_of(model: str) -> str | None:
    """The known model whose name begins another's, as `nano-float`'s does."""
    return max((name for name in KNOWN if model.startswith(f"{name}-")), key=len, default=None)


def used_sha256(spec: str | Path) -> str | None:
    """`model_sha256` of what `spec` means here: where torch is absent, a known name's graphs."""
    graphs = None if workshop_is_here() else shipped_graphs(spec)
    return model_sha256(spec if graphs is None else graphs)


def command(arguments: list[str]) -> str:
    """A command line as it would be typed: the console script by its name, a module by `python -m`."""
    program, *rest = arguments
    path = Path(program)
    if path.suffix == ".py" and path.is_absolute():
        package = Path(sam_edge.__file__).parent
        inside = path.with_suffix("")
        for root in (package, package.parent):
            if inside.is_relative_to(root):
                parts = [part for part in inside.relative_to(root).parts if part not in ("__main__", "sam_edge")]
                program = f"python -m {'.'.join(['sam_edge', *parts])}"
                break
    else:
        program = path.name
    # a whole path tells more of a machine than of a command
    rest = [os.path.relpath(word) if os.path.isabs(word) else word for word in rest]
    return " ".join([program, shlex.join(rest)]).strip()


def write_lines(lines: Iterable[Mapping[str, Any]], told: Mapping[str, Any], path: str | Path) -> None:
    """A CSV file: a row for each of `lines`, with where it comes from; what a line lacks is an empty cell.

    Args:
        told: what `provenance()` gave.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    origin = {name: told.get(name) for name in ("date", "version", "commit", "command")}
    origin |= {name: told.get("hardware", {}).get(name) for name in ("cpu", "gpu")}
    rows = [{**line, **origin} for line in lines]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def clocks() -> dict[str, Any]:
    """The first core's governor and clock rates in MHz, as Linux tells them; what it does not tell is None."""
    folder = Path("/sys/devices/system/cpu/cpu0/cpufreq")

    def read(name: str) -> str | None:
        try:
            return (folder / name).read_text().strip()
        except OSError:
            return None

    def mhz(name: str) -> float | None:
        text = read(name)
        return int(text) / 1000 if text is not None and text.isdecimal() else None

    return {
        "governor": read("scaling_governor"),
        "mhz": mhz("scaling_cur_freq"),
        "most_mhz": mhz("scaling_max_freq"),
    }


def _checkout(root: Path) -> tuple[str | None, bool | None]:
    """The commit of a checkout, and whether files differ from it; nothing of what is no checkout."""
    if not (root / ".git").exists():
        return None, None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head.strip(), bool(_git(root, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout
