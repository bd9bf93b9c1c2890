"""`python -m sam_edge.bench.roofline MODEL...`: each node's time over what this machine allows for it, and a chart.

ONNX Runtime's own profile of an encoder gives times and shapes. A node's limit is what its multiplications take at the
rate of NumPy's matrix product in float32, or the bytes that it reads and writes at that of a copy, whichever is more
(Williams, Waterman and Patterson, Roofline, 2009). Integer and bfloat16 products may lie below such a limit, and so may
what stays in caches from the node before.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sam_edge.bench.hardware import hardware
from sam_edge.bench.kernels import Rates, measured_rates
from sam_edge.bench.provenance import model_sha256, provenance, write_lines
from sam_edge.errors import BenchError
from sam_edge.files import atomic_folder
from sam_edge.kernels.attention import Work, work
from sam_edge.runtimes.folder import names_exported_folder, shipped_graphs
from sam_edge.runtimes.kernels import POSITIONAL
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.processor import features
from sam_edge.runtimes.threads import cpu_threads

ELEMENT_BYTES = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8, "int64": 8, "int32": 4, "bool": 1}
"""Of ONNX Runtime's names of types; 1 of the others, which are integers of 8 bits."""
SHOWN = 40
"""Nodes in the chart, those that take longest."""
ATTENTION_INPUTS = 5
"""Of sam-edge's operator: q, k, v and the tables of relative positions of rows and columns."""


@dataclass(frozen=True)
class NodeTime:
    """What a node of a graph takes, and what it would at least."""

    name: str
    operator: str
    shape: tuple[int, ...]
    """Of its first output."""
    ms: float
    """Median over runs."""
    macs: int
    """Multiply-accumulates of products, convolutions and attention; 0 of others."""
    bytes: int
    """Read and written, weights included."""
    limit_ms: float

    @property
    def over_limit(self) -> float:
        """Its time over its limit."""
        return self.ms / self.limit_ms if self.limit_ms else math.inf


def profiled(folder: str | Path, runs: int, rates: Rates, threads: int, *, kernels: bool = True) -> list[NodeTime]:
    """The nodes of an exported encoder in the order in which ONNX Runtime runs them, after one run that is not counted.

    Raises:
        BenchError: fewer than one run.
    """
    if runs < 1:
        raise BenchError(f"runs must be at least 1, got {runs}.")
    with tempfile.TemporaryDirectory() as scratch:
        runtime = OnnxRuntime(folder, threads=threads, kernels=kernels, profile=Path(scratch) / "encoder")
        side = runtime.config.image_size
        pixels = np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)
        for _ in range(runs + 1):
            runtime.encode(pixels)
        events = json.loads(Path(runtime.end_profile("encoder")).read_text(encoding="utf-8"))
    return nodes_of(events, rates)


def nodes_of(events: Iterable[dict[str, Any]], rates: Rates) -> list[NodeTime]:
    """The nodes of a profile, which holds the events of several runs, the first of them to warm up."""
    times_us: dict[str, list[float]] = {}
    told: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = f"{event['args'].get('node_index')} {event['name']}"
            times_us.setdefault(key, []).append(event["dur"])
            told.setdefault(key, event)
    nodes = []
    for key, event in told.items():
        arguments = event["args"]
        shapes = _shapes(arguments["output_type_shape"])
        ms = median(times_us[key][1:] or times_us[key]) / 1000
        moved = sum(int(arguments.get(part, 0)) for part in ("activation_size", "parameter_size", "output_size"))
        macs = _macs(arguments)
        limit = rates.least_ms(Work(multiplications=macs, exponentials=0, bytes=moved))
        name = event["name"].removesuffix("_kernel_time")
        nodes.append(NodeTime(name, arguments["op_name"], shapes[0] if shapes else (), ms, macs, moved, limit))
    return nodes


def _shapes(given: Sequence[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for entry in given for shape in entry.values()]


def _macs(arguments: dict[str, Any]) -> int:
    """By a node's name and shapes; weights that were packed beforehand show in `parameter_size` alone."""
    operator = arguments["op_name"]
    inputs, outputs = (_shapes(arguments[f"{side}_type_shape"]) for side in ("input", "output"))
    if operator == POSITIONAL and len(inputs) >= ATTENTION_INPUTS:
        return _attention_macs(inputs)
    if "MatMul" in operator or "Gemm" in operator:
        # a product's inner size is its first factor's last
        return math.prod(outputs[0]) * inputs[0][-1]
    if "Conv" in operator:
        kind = next(iter(arguments["input_type_shape"][0]))
        weights = [shape for shape in inputs[1:] if len(shape) == 4]
        # each weight meets each place of the output once, in groups or not
        count = (
            math.prod(weights[0]) if weights else int(arguments.get("parameter_size", 0)) // ELEMENT_BYTES.get(kind, 1)
        )
        places = math.prod((outputs[0][0], *outputs[0][2:]))
        return places * count
    return 0


def _attention_macs(inputs: Sequence[tuple[int, ...]]) -> int:
    """Of batches x tokens x channels, with tables of (2 side - 1) x a head's channels."""
    (batch, _, qk), value, rows, columns = inputs[0], inputs[2], inputs[3], inputs[4]
    heads = qk // rows[1]
    return work(batch, heads, (rows[0] + 1) // 2, (columns[0] + 1) // 2, rows[1], value[2] // heads).multiplications


def chart(nodes: Sequence[NodeTime], title: str) -> str:
    """The slowest nodes as SVG: a bar for the time of each, a mark where its limit lies."""
    shown = sorted(nodes, key=lambda node: -node.ms)[:SHOWN]
    longest = max((max(node.ms, node.limit_ms) for node in shown), default=1.0) or 1.0
    row, left, width = 18, 330, 420
    height = row * len(shown) + 54
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 170}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        "<style>text { fill: #1c2024 } .bar { fill: #2563b8 } .limit { stroke: #c2570c; stroke-width: 2 }"
        " @media (prefers-color-scheme: dark) { text { fill: #e8eaed } .bar { fill: #6ea8fe } }</style>",
        f'<text x="8" y="18" font-size="13">{escape(title)}</text>',
        '<text x="8" y="34">time of each node (bar), what the machine allows (mark), and their ratio</text>',
    ]
    for index, node in enumerate(shown):
        y = 46 + row * index
        label = f"{node.operator} {' x '.join(map(str, node.shape))}"
        bar, mark = (width * value / longest for value in (node.ms, node.limit_ms))
        ratio = f"{node.over_limit:.1f} x" if node.limit_ms else "no limit"
        parts += [
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{bar:.1f}" height="11"/>',
            f'<line class="limit" x1="{left + mark:.1f}" x2="{left + mark:.1f}" y1="{y}" y2="{y + 15}"/>',
            f'<text x="{left + max(bar, mark) + 6:.1f}" y="{y + 11}">{node.ms:.2f} ms, {ratio}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def by_operator(nodes: Sequence[NodeTime]) -> list[dict[str, Any]]:
    """Time, limit and share of all of each operator, longest first."""
    whole = sum(node.ms for node in nodes) or 1.0
    rows = []
    for operator in dict.fromkeys(node.operator for node in nodes):
        own = [node for node in nodes if node.operator == operator]
        ms, limit = sum(node.ms for node in own), sum(node.limit_ms for node in own)
        rows.append({"operator": operator, "nodes": len(own), "ms": ms, "limit_ms": limit, "share": ms / whole})
    return sorted(rows, key=lambda row: -row["ms"])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write.

    Raises:
        BenchError: a model that is no exported folder.
    """
    parser = argparse.ArgumentParser(prog="python -m sam_edge.bench.roofline", description=__doc__)
    parser.add_argument(
        "model", nargs="?", default="nano", help="an exported folder, or a known name that ships as one"
    )
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-kernels", action="store_true", help="the nodes as they were exported")
    parser.add_argument("--out", type=Path, help="folder for bench.json, layers.csv and roofline.svg")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    folder = Path(given.model) if names_exported_folder(given.model) else shipped_graphs(given.model)
    if folder is None:
        raise BenchError(f"{given.model} is no exported folder, nor a known model that ships as graphs.")
    rates = measured_rates(turns=5)
    nodes = profiled(folder, given.runs, rates, given.threads, kernels=not given.no_kernels)
    machine = {**hardware(), "features": features(), "threads": given.threads}
    known_as = given.model if names_exported_folder(given.model) else folder.name
    found: dict[str, Any] = {
        "provenance": provenance({known_as: model_sha256(known_as)}, hardware=machine),
        "rates": asdict(rates),
        "operators": by_operator(nodes),
        "nodes": [{**asdict(node), "over_limit": node.over_limit if node.limit_ms else None} for node in nodes],
    }
    if given.out is not None:
        with atomic_folder(given.out) as work_folder:
            (work_folder / "bench.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
            title = f"{given.model}'s encoder, {machine['cpu']}, {given.threads} threads"
            (work_folder / "roofline.svg").write_text(chart(nodes, title), encoding="utf-8")
            write_lines(found["nodes"], found["provenance"], work_folder / "layers.csv")
    if given.json:
        print(json.dumps(found))
        return found
    print(f"{rates.multiplications_per_s / 1e9:.1f} G multiplications and {rates.bytes_per_s / 1e9:.1f} GB a second")
    for row in found["operators"]:
        ratio = f"{row['ms'] / row['limit_ms']:6.1f} x its limit" if row["limit_ms"] else ""
        print(f"{row['operator']:24} {row['nodes']:4} nodes {row['ms']:9.2f} ms {row['share']:6.1%} {ratio}")
    return found


if __name__ == "__main__":
    main()
