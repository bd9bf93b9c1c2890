"""Writing the site: the page, ONNX Runtime for the web, and the graphs of one or more models."""

import importlib.resources
import json
import re
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sam_edge import __version__
from sam_edge.errors import ExportError
from sam_edge.files import atomic_folder
from sam_edge.runtimes.clipping import without_sign
from sam_edge.runtimes.folder import ExportedFolder, names_exported_folder, shipped_graphs
from sam_edge.segment.known import shipped_folder

SCHEMA = 1
MANIFEST = "site.json"
PACKAGE = Path(str(importlib.resources.files("sam_edge.web")))
PAGE = PACKAGE / "page"
RUNTIME = PACKAGE / "onnxruntime-web.tar.xz"


@dataclass(frozen=True)
class Site:
    """A site as it was written."""

    out: Path
    models: tuple[str, ...]
    """Their names on the page."""
    file_bytes: dict[str, int]
    """Bytes of the page itself, of the runtime for processors, and of each model."""


def write_site(folders: Sequence[tuple[str, Path]], out: Path) -> Site:
    """Write a static site that offers models, each a name and its exported folder, in this order.

    Raises:
        ExportError: two models of one name, a graph without everything mode's parts, or one too large for a browser.
        CheckpointError: no exported folder.
    """
    models = [(name, ExportedFolder.read(folder)) for name, folder in folders]
    names = [file_name(name) for name, _ in models]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ExportError(f"two models are called {name}: rename one of their folders.")
    for _, folder in models:
        _require_small(folder)
    with atomic_folder(out) as work:
        shutil.copytree(PAGE, work, dirs_exist_ok=True)
        with tarfile.open(RUNTIME) as archive:
            archive.extractall(work / "runtime", filter="data")
        shutil.copy(shipped_folder("sample") / "photo.jpg", work / "sample.jpg")
        page_bytes = sum(file.stat().st_size for file in work.iterdir() if file.is_file())
        entries = [_add(folder, name, work) for name, (_, folder) in zip(names, models, strict=True)]
        manifest = {"schema": SCHEMA, "version": __version__, "models": entries}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        runtime_bytes = (work / "runtime" / "ort-wasm-simd-threaded.wasm").stat().st_size
    sizes = {"page": page_bytes, "runtime": runtime_bytes, **{entry["name"]: entry["bytes"] for entry in entries}}
    return Site(out, tuple(names), sizes)


def file_name(name: str) -> str:
    """A model's name as it can stand in an address."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _require_small(folder: ExportedFolder) -> None:
    folder.require_split()
    for graph in folder.graphs:
        file = folder.graph_file(graph)
        if file.with_name(f"{file.name}.data").is_file():
            raise ExportError(f"{file} is too large for a browser: compress and quantize the model first.")


def _add(folder: ExportedFolder, name: str, work: Path) -> dict[str, Any]:
    """Copy a model's graphs; returns its entry in `site.json`."""
    config = folder.config
    graphs = {}
    target = work / "models" / name
    target.mkdir(parents=True)
    for graph, described in folder.graphs.items():
        file = target / f"{graph}.onnx"
        places = described.get("unsigned") if described.get("integers", True) else None
        # without signs no browser's kernels can clip a sum of products, and it takes no time
        file.write_bytes(
            without_sign(folder.graph_file(graph), places) if places else folder.graph_file(graph).read_bytes()
        )
        graphs[graph] = {
            "file": file.relative_to(work).as_posix(),
            "integers": described.get("integers", True),
            "bytes": file.stat().st_size,
        }
    return {
        "name": name,
        "precision": folder.precision,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "draws_boxes": config.decoder.draws_boxes,
        "draws_points": config.decoder.draws_points,
        "pixel_mean": config.pixel_mean,
        "pixel_std": config.pixel_std,
        "thresholds": asdict(config.thresholds),
        "bytes": sum(graph["bytes"] for graph in graphs.values()),
        "graphs": graphs,
    }


def graphs_at_hand(spec: str, precision: str) -> Path | None:
    """A MODEL's exported folder: itself, or what ships of a known one in integers; None for what is to be exported."""
    if names_exported_folder(spec):
        return Path(spec).expanduser()
    return shipped_graphs(spec) if precision == "int8" else None


def name_of(spec: str) -> str:
    """What a MODEL is called on the page: its folder's or file's name, or its own."""
    return Path(spec).expanduser().resolve().name if Path(spec).expanduser().exists() else spec.replace(":", "-")
