"""`sam-edge doctor`: what this installation and this machine have, and what would mend or better them."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from sam_edge import __version__
from sam_edge.commands.common import OnProgress
from sam_edge.errors import BackendUnavailableError, CheckpointError
from sam_edge.files import cache_folder
from sam_edge.halves import EXTRAS, workshop_is_here
from sam_edge.kernels.library import level
from sam_edge.runtimes.clipping import clips_products
from sam_edge.runtimes.cuda import cuda_devices
from sam_edge.runtimes.folder import ExportedFolder, shipped_graphs
from sam_edge.runtimes.listing import Listed, listed
from sam_edge.runtimes.onnx_runtime import clash
from sam_edge.runtimes.processor import features
from sam_edge.runtimes.threads import cpu_threads

State = Literal["well", "note", "wrong"]
"""`note` is worth knowing, `wrong` keeps something from working."""
LEAST_FREE_BYTES = 2_000_000_000
"""Room that an export of SAM-B and its scratch copies want."""
GRAPH_RUNTIMES = ("onnxruntime", "openvino")
"""Runtimes that run exported folders on any CPU."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty where there is nothing to do."""


def examine(on_progress: OnProgress | None = None) -> list[Finding]:
    """Look at Python, packages, both halves, runtimes, the processor, the GPU, memory, folders and packaged models."""
    looks = (_python, _packages, _halves, _runtimes, _processor, _gpus, _memory, _folders, _packaged)
    found: list[Finding] = []
    for number, look in enumerate(looks):
        if on_progress is not None:
            on_progress(number, len(looks), look.__name__.strip("_"))
        found += look()
    return found


def _python() -> Iterator[Finding]:
    place = Path(__file__).parents[2]
    yield Finding("Python", "well", f"{platform.python_version()}, {platform.platform()}, {sys.executable}")
    yield Finding("sam-edge", "well", f"{__version__}, {place}")


def _packages() -> Iterator[Finding]:
    """The packages that everything needs, of the versions that this release was made for."""
    try:
        needed = [line for line in requires("sam-edge") or () if "extra ==" not in line]
    except PackageNotFoundError:
        yield Finding("packages", "note", "sam-edge is not installed", "install it: pip install '.[cpu]'")
        return
    old = []
    for line in needed:
        wanted = re.fullmatch(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?.*", line)
        assert wanted is not None, line
        name, least = wanted.groups()
        try:
            here = version(name)
        except PackageNotFoundError:
            here = ""
        if not here or (least and _number(here) < _number(least)):
            old.append(f"{name} {here or 'is absent'}, {least} is needed")
    if old:
        yield Finding("packages", "wrong", "; ".join(old), "reinstall: pip install --upgrade sam-edge")
    else:
        yield Finding("packages", "well", f"all {len(needed)} that it needs")


def _number(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.0.10rc1` is (2, 0, 10)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[a-z+]", text, maxsplit=1)[0]))


def _halves() -> Iterator[Finding]:
    if workshop_is_here():
        yield Finding("workshop", "well", f"torch {version('torch')}: models can be made here")
    else:
        advice = f"only to make models: pip install 'sam-edge[{EXTRAS['torch']}]'"
        yield Finding("workshop", "note", "without torch: models can be used here, not made", advice)


def _runtimes() -> Iterator[Finding]:
    rows = listed()
    # what is wrong with a library says so by its remedy; of two packages in one folder neither can be trusted
    for row in rows:
        if row.version is not None:
            broken = not row.here or (row.name == "onnxruntime" and clash() is not None)
            yield Finding(row.name, "wrong" if broken else "well", f"{row.version} {row.computes}".strip(), row.remedy)
    if not any(row.here for row in rows if row.name in GRAPH_RUNTIMES):
        yield Finding("runtimes", "wrong", "none that runs exported models on this CPU", _first_remedy(rows))


def _first_remedy(rows: list[Listed]) -> str:
    return next(row.remedy for row in rows if row.name == GRAPH_RUNTIMES[0])


def _processor() -> Iterator[Finding]:
    able = features()
    text = f"{', '.join(able) or 'features unknown'}; {cpu_threads()} threads"
    if clips_here():
        yield Finding(
            "processor", "note", text, "no VNNI: INT8 saves memory here, and little or no time; compare with --runtime"
        )
    else:
        yield Finding("processor", "well", text)
    try:
        kernels = level()
    except BackendUnavailableError as error:
        yield Finding("kernels", "wrong", os.environ.get("SAM_EDGE_KERNELS", ""), str(error))
        return
    if kernels:
        yield Finding("kernels", "well", f"compiled for {kernels}")
    else:
        yield Finding(
            "kernels",
            "note",
            "not compiled, or switched off",
            "for faster attention: install a C++ compiler, reinstall",
        )


def clips_here() -> bool:
    """Whether integer products are clipped here, as far as ONNX Runtime can be asked."""
    try:
        return clips_products()
    except BackendUnavailableError:
        return False


def _gpus() -> Iterator[Finding]:
    devices = cuda_devices()
    if devices:
        yield Finding("GPU", "well", ", ".join(f"{device.name} ({device.target})" for device in devices))
    else:
        yield Finding("GPU", "well", "no CUDA device, and none is needed")


def _memory() -> Iterator[Finding]:
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("memory", "well", f"{whole / 2**30:.1f} GiB; everything mode keeps to --max-memory-gb")


def _folders() -> Iterator[Finding]:
    places: dict[str, Callable[[], Path]] = {
        "cache": cache_folder,
        "temporary files": lambda: Path(tempfile.gettempdir()),
        "this folder": Path.cwd,
    }
    for name, place in places.items():
        folder = place()
        there = folder
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        text = f"{folder}, {free / 1e9:.1f} GB free"
        if name == "cache" and folder.is_dir():
            held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            text += f", {held / 1e6:.0f} MB of downloads"
        advice = ""
        if not os.access(there, os.W_OK):
            setting = {"cache": "set SAM_EDGE_CACHE", "temporary files": "set TMPDIR"}.get(name, "give --out")
            yield Finding(name, "note", text, f"it cannot be written to: {setting} to a folder that can")
            continue
        if free < LEAST_FREE_BYTES:
            advice = f"little room: exports of large models want {LEAST_FREE_BYTES / 1e9:.0f} GB"
        yield Finding(name, "note" if advice else "well", text, advice)


def _packaged() -> Iterator[Finding]:
    """The graphs that ship, each held against its hash."""
    graphs = shipped_graphs("nano")
    if graphs is None:
        yield Finding("nano", "wrong", "its graphs are not in this installation", "reinstall sam-edge from a release")
        return
    try:
        folder = ExportedFolder.read(graphs)
    except CheckpointError as error:
        yield Finding("nano", "wrong", str(error), "reinstall sam-edge from a release")
        return
    yield Finding("nano", "well", f"{len(folder.graphs)} graphs in {folder.precision}, each of its hash")
