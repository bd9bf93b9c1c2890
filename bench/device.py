"""`sam-edge study device`: what sam-edge takes on a device, each in a fresh process.

Installed size is of a virtual environment made for it; everything else is of `sam-edge segment` run by its Python, from
the start of the process to the files written. Peak memory is resident, of the one process; processor time is of all its
threads. The bars are those that the project holds itself to.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from sam_edge.bench.hardware import hardware
from sam_edge.bench.memory import Taken, run_alone
from sam_edge.bench.provenance import made_of, model_sha256, provenance
from sam_edge.errors import BenchError, SamEdgeError
from sam_edge.files import atomic_file
from sam_edge.runtimes.folder import ExportedFolder, names_exported_folder, shipped_graphs
from sam_edge.runtimes.processor import features

MEGABYTE = 1_000_000
INSTALLED_MB, PROMPT_CPU_S, PROMPT_MB, FLOAT_PROMPT_MB, EVERYTHING_MB = 300, 2.0, 230, 450, 450
"""The bars: an installation, and a prompt's and everything mode's processor time and memory."""
LIMITED_BYTES = 512 * 2**20
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Row:
    """One thing that was measured."""

    what: str
    model: str = ""
    """Of what, by the name under which its weights are told."""
    wall_s: float | None = None
    cpu_s: float | None = None
    megabytes: float | None = None
    bars: str = ""
    """What it should be at most; empty where nothing was asked for."""
    held: bool | None = None
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="sam-edge study device", description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["nano"], help="exported folders; nano's shipped graphs by default"
    )
    parser.add_argument("--image", type=Path, help="a photo; seeded blobs of colour by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--source", help="a checkout or a wheel to install; without it the running Python is measured")
    parser.add_argument("--everything", action="store_true", help="everything mode too: minutes of a small processor")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write rows and machine here, as JSON")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(given, Path(scratch))
    machine = {**hardware(), "features": features(), "threads": given.threads}
    if given.json or given.out:
        # what was made of a known model changes with it
        names = {name for row in rows if row.model for name in (row.model, made_of(row.model)) if name}
        models = {name: model_sha256(name) for name in sorted(names)}
        found = {"provenance": provenance(models, hardware=machine), "rows": [asdict(row) for row in rows]}
        text = json.dumps(found, indent=1) + "\n"
        if given.out:
            with atomic_file(given.out) as part:
                part.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    if not given.json:
        Console().print(_table(rows, f"{machine['cpu']} ({', '.join(features())}), {given.threads} threads"))
    return rows


def measure(given: argparse.Namespace, scratch: Path) -> list[Row]:
    """The rows that the command line asks for."""
    rows, python = [], Path(sys.executable)
    if given.source:
        python = install(given.source, scratch / "environment")
        megabytes = folder_bytes(scratch / "environment") / MEGABYTE
        rows.append(_held("installed, .[cpu]", None, megabytes, None, INSTALLED_MB))
    image = given.image or _blobs(scratch / "blobs.png")
    with Image.open(image) as opened:
        width, height = opened.size
    prompts = {
        "point": ("--point", f"{width // 2},{height // 2}"),
        "box": ("--box", f"{width // 4},{height // 4},{3 * width // 4},{3 * height // 4}"),
    }
    everything = ("--everything", "--strategy", "hierarchical", "--points-per-side", "32", "--max-memory-gb", "0.2")
    environment = {"OMP_NUM_THREADS": str(given.threads), "OPENBLAS_NUM_THREADS": str(given.threads)}

    def taken(model: str, asked: Sequence[str], limits: Sequence[str] = (), one_thread: bool = False) -> Taken:
        # -P: what is installed there, not a checkout that happens to be the current folder
        command = [str(python), "-P", "-m", "sam_edge", "segment", model, str(image), *asked]
        threads = dict.fromkeys(environment, "1") if one_thread else environment
        return run_alone(
            [*command, "--runtime", "onnxruntime", "--out", str(scratch / "masks")],
            TIMEOUT_S,
            limits=limits,
            environment=threads,
        )

    for model in given.models:
        folder = shipped_graphs(model) if not names_exported_folder(model) else Path(model)
        if folder is None:
            raise BenchError(f"{model} is no exported folder, nor a known model that ships as graphs.")
        spec, precision = str(folder), ExportedFolder.read(folder).precision
        most_mb = PROMPT_MB if precision == "int8" else FLOAT_PROMPT_MB
        most_s = PROMPT_CPU_S if precision == "int8" else None
        known_as = model if names_exported_folder(model) else folder.name
        first = len(rows)
        for prompt, asked in prompts.items():
            rows.append(_held(f"{model}, {precision}, {prompt}", taken(spec, asked), None, most_s, most_mb))
        if precision == "int8":
            rows.append(_limited(f"{model}, {precision}, box, control group of 512 MB", taken, spec, prompts["box"]))
            limits = ("--address-space", str(LIMITED_BYTES))
            rows.append(_tried(f"{model}, {precision}, box, ulimit -v 512 MB", taken, spec, prompts["box"], limits))
        if given.everything:
            found = taken(spec, everything)
            rows.append(_held(f"{model}, {precision}, everything", found, None, None, EVERYTHING_MB))
        rows[first:] = [replace(row, model=known_as) for row in rows[first:]]
    return rows


def install(source: str, folder: Path) -> Path:
    """A new environment with `source`'s device half and onnxruntime; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{source}[cpu]"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"pip could not install {source}[cpu]: {done.stderr.strip().splitlines()[-1]}")
    # of a checkout pip leaves what it built there
    return python


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() or file.is_symlink())


def _blobs(file: Path, size: int = 512) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file)
    return file


def _held(what: str, taken: Taken | None, megabytes: float | None, most_s: float | None, most_mb: float) -> Row:
    mb = taken.peak_bytes / MEGABYTE if taken is not None else megabytes
    assert mb is not None
    cpu = None if taken is None else taken.cpu_s
    held = mb <= most_mb and (most_s is None or cpu is None or cpu <= most_s)
    bars = f"{most_mb} MB" if most_s is None else f"{most_s:g} s, {most_mb} MB"
    return Row(what, "", None if taken is None else taken.wall_s, cpu, mb, bars, held)


def _tried(what: str, taken: object, spec: str, asked: Sequence[str], limits: Sequence[str]) -> Row:
    assert callable(taken)
    try:
        found: Taken = taken(spec, asked, limits, True)
    except SamEdgeError as error:
        return Row(what, bars="runs", held=False, note=str(error))
    return Row(what, "", found.wall_s, found.cpu_s, found.peak_bytes / MEGABYTE, "runs", True)


def _limited(what: str, taken: object, spec: str, asked: Sequence[str]) -> Row:
    with control_group(LIMITED_BYTES) as group:
        if group is None:
            return Row(what, note="no control group can be made here")
        return _tried(what, taken, spec, asked, ("--group", str(group)))


@contextmanager
def control_group(most_bytes: int) -> Iterator[Path | None]:
    """A control group (version 2, or 1's memory controller) whose members have so much memory; None where none can be
    made."""
    for root, limit in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        if not (root / "cgroup.procs").exists():
            # a folder that only looks like one takes a limit and does nothing
            continue
        group = root / f"sam-edge-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(most_bytes))
            with suppress(OSError):
                (group / "memory.swap.max").write_text("0")
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            with suppress(OSError):
                group.rmdir()
        return
    yield None


def _table(rows: Sequence[Row], caption: str) -> Table:
    table = Table(title="What a device needs", caption=caption)
    for heading in ("", "seconds", "processor", "MB", "at most", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        verdict = row.note or {True: "held", False: "NOT held", None: ""}[row.held]
        numbers = ["-" if value is None else f"{value:.2f}" for value in (row.wall_s, row.cpu_s)]
        megabytes = "-" if row.megabytes is None else f"{row.megabytes:.0f}"
        table.add_row(row.what, *numbers, megabytes, row.bars, verdict)
    return table


if __name__ == "__main__":
    main()
