"""An exported folder as the files that another tool opens, proven against the predictor before they are kept."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sam_edge.errors import ExportError
from sam_edge.export.adapters import write_graphs
from sam_edge.export.layout_client import prove
from sam_edge.export.layout_readme import opening
from sam_edge.export.layouts import LAYOUTS
from sam_edge.export.readme import licence
from sam_edge.files import atomic_folder
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.threads import cpu_threads

SCHEMA = 1
MANIFEST = "layout.json"


def write_layout(
    exported: str | Path, out: str | Path, layout: str, images: Sequence[np.ndarray], name: str, source: str
) -> dict[str, Any]:
    """Write `out` in a layout: its graphs, the tool's configuration, `layout.json` and a README.md.

    `name` is what the tool calls the model, `source` what was exported. Returns what `layout.json` says.

    Raises:
        ExportError: a model that the tool cannot open without loss, or masks on `images` that differ from ours.
    """
    folder, chosen = ExportedFolder.read(exported), LAYOUTS[layout]
    chosen.require(layout, folder.config, folder.dialect)
    if not images:
        raise ExportError("a layout is proven on at least one picture: check --images.")
    with atomic_folder(out) as work:
        graphs = write_graphs(folder, chosen, work)
        for file, text in chosen.config_files(name, chosen, folder.config, folder.precision).items():
            (work / file).write_text(text, encoding="utf-8")
        runtime = OnnxRuntime(exported, threads=cpu_threads())
        manifest = {
            "schema": SCHEMA,
            "layout": layout,
            "opened_by": chosen.opened_by,
            "precision": folder.precision,
            "dialect": folder.dialect,
            "mask_iou": prove(work, chosen, layout, runtime, folder.precision, images),
            "graphs": graphs,
            "config": asdict(folder.config),
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        (work / "README.md").write_text(_readme(name, source, manifest, folder), encoding="utf-8")
    return manifest


def _readme(name: str, source: str, manifest: dict[str, Any], folder: ExportedFolder) -> str:
    """Markdown for people who find the files."""
    lines = [
        f"# {name}",
        "",
        f"A Segment Anything model in {folder.precision}, exported from `{source}` by sam-edge in the layout "
        f"`{manifest['layout']}`, which opens in: {manifest['opened_by']}. {licence(source, folder.config)}",
        "",
        opening(manifest["layout"], name, folder.precision, manifest["graphs"]),
        "",
        f"Masks agree with sam-edge's own to a mean IoU of {manifest['mask_iou']:.4f}.",
        "",
        "| file | inputs | outputs |",
        "| --- | --- | --- |",
    ]
    for graph in manifest["graphs"].values():
        sides = (
            ", ".join(f"`{key}` {value['type']} {value['shape']}" for key, value in graph[side].items())
            for side in ("inputs", "outputs")
        )
        lines.append(f"| `{graph['file']}` | {' | '.join(sides)} |")
    return "\n".join(lines) + "\n"
