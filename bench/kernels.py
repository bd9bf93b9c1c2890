"""`sam-edge study kernels FOLDER...`: attention's kernel over its peers and over the machine's limit.

The peers are the nodes that an exported encoder has for the same attention, in ONNX Runtime. The limit is what the
multiplications take at the rate of NumPy's matrix product, or the bytes at that of a copy, whichever is more; the
exponentials are not in it. All are processor time, and the least of some turns: on a machine that others use too these
are the steadiest.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time

import numpy as np
from jaxtyping import Float32
from rich.console import Console
from rich.table import Table

from sam_edge.bench.hardware import hardware
from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.errors import BenchError
from sam_edge.kernels.attention import Work, work
from sam_edge.kernels.library import library_file
from sam_edge.runtimes.folder import ExportedFolder, names_exported_folder, shipped_graphs
from sam_edge.runtimes.kernels import POSITIONAL, attention_alone
from sam_edge.runtimes.onnx_runtime import OnnxRuntime, load_onnxruntime, session_options
from sam_edge.runtimes.processor import features
from sam_edge.segment.config import BlockConfig, ModelConfig

MATRIX = 768
"""Rows and columns of the matrices by which the processor's rate is measured."""
COPIED_BYTES = 2**26
"""More than caches hold."""


@dataclass(frozen=True)
class Row:
    """One computation, with the kernel and without."""

    what: str
    kernel_ms: float
    nodes_ms: float
    limit_ms: float | None = None
    """None of what is more than attention."""

    @property
    def over_nodes(self) -> float:
        """The kernel's time over its peer's."""
        return self.kernel_ms / self.nodes_ms

    @property
    def over_limit(self) -> float | None:
        """The kernel's time over the machine's limit."""
        return None if self.limit_ms is None else self.kernel_ms / self.limit_ms


@dataclass(frozen=True)
class Rates:
    """What one thread of this machine does at most, as measured."""

    multiplications_per_s: float
    bytes_per_s: float
    """Read or written."""

    def least_ms(self, of: Work) -> float:
        """What some work takes at these rates."""
        return 1000 * max(of.multiplications / self.multiplications_per_s, of.bytes / self.bytes_per_s)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and print.

    Raises:
        BenchError: no kernels here, or a model that is no exported folder with notes.
    """
    parser = argparse.ArgumentParser(prog="sam-edge study kernels", description=__doc__)
    parser.add_argument("models", nargs="*", default=["nano"], help="exported folders, or known names that ship as one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    rates = measured_rates(given.turns)
    rows = [row for model in given.models for row in measure(model, rates, given.threads, given.turns)]
    machine = {**hardware(), "features": features()}
    if given.json:
        told = provenance({model: used_sha256(model) for model in given.models}, hardware=machine)
        print(json.dumps({"provenance": told, "rates": asdict(rates), "rows": [asdict(row) for row in rows]}))
        return rows
    table = Table(
        title="processor time, ms",
        caption=f"{machine['cpu']} ({', '.join(features())}); kernels: {machine['kernels']}; {given.threads} threads; "
        f"{rates.multiplications_per_s / 1e9:.1f} G multiplications and {rates.bytes_per_s / 1e9:.1f} GB a second",
    )
    for heading in ("", "kernel", "nodes", "kernel / nodes", "limit", "kernel / limit"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        limit = ("-", "-") if row.limit_ms is None else (f"{row.limit_ms:.2f}", f"{row.over_limit:.2f}")
        table.add_row(row.what, f"{row.kernel_ms:.2f}", f"{row.nodes_ms:.2f}", f"{row.over_nodes:.2f}", *limit)
    Console().print(table)
    return rows


def measured_rates(turns: int) -> Rates:
    """By NumPy, which takes its own number of threads: processor time is of all of them."""
    left, right = np.ones((2, MATRIX, MATRIX), np.float32)
    source = np.ones(COPIED_BYTES, np.uint8)
    target = np.empty_like(source)
    product_s, copy_s = least_s([lambda: left @ right, lambda: np.copyto(target, source)], turns)
    return Rates(MATRIX**3 / product_s, 2 * COPIED_BYTES / copy_s)


def measure(model: str, rates: Rates, threads: int, turns: int) -> list[Row]:
    """An exported encoder's attentions, one of each size, and the encoder as a whole."""
    path = Path(model) if names_exported_folder(model) else shipped_graphs(model)
    if path is None:
        raise BenchError(f"{model} is no exported folder, nor a known model that ships as graphs.")
    kernels, folder = library_file(), ExportedFolder.read(path)
    notes = [note for note in folder.graphs["encoder"].get("kernels", []) if note["operator"] == POSITIONAL]
    if kernels is None:
        raise BenchError("there are no compiled kernels here: install a C++ compiler, then sam-edge.")
    if not notes:
        raise BenchError(
            f"{path} has no notes of attention with relative positions: export it again (only ViTs in float32 or int8 "
            "have any)."
        )
    read = folder.graph_for_this_cpu("encoder")
    content = read if isinstance(read, bytes) else read.read_bytes()
    library, rng = load_onnxruntime(), np.random.default_rng(0)
    rounded = bool(folder.graphs["encoder"]["integers"])
    rows = []
    for sizes, (index, count) in attentions(folder.config).items():
        batch, heads, height, width, qk, v = sizes
        tokens = [(batch, height * width, heads * channels) for channels in (qk, qk, v)]
        shapes = [*tokens, *((2 * side - 1, qk) for side in (height, width))]
        inputs = {
            name: rng.standard_normal(shape, np.float32)
            for name, shape in zip(notes[index]["inputs"], shapes, strict=True)
        }

        def ready(kernel: bool, index=index, shapes=shapes, inputs=inputs) -> Callable[[], object]:
            options = session_options(folder.graphs["encoder"], threads)
            options.register_custom_ops_library(str(kernels))
            graph = attention_alone(content, notes[index], shapes, shapes[2], kernel=kernel, rounded=rounded)
            session = library.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            return lambda: session.run(None, inputs)

        kernel_s, nodes_s = least_s([ready(True), ready(False)], turns)
        what = f"{path.name}: {count} x {batch * heads} grids of {height} x {width}, {qk} and {v} channels"
        rows.append(Row(what, 1000 * kernel_s, 1000 * nodes_s, rates.least_ms(work(*sizes))))
    side = folder.config.image_size
    pixels: Float32[np.ndarray, "1 3 s s"] = rng.standard_normal((1, 3, side, side), np.float32)
    runtimes = [OnnxRuntime(path, threads=threads, kernels=wanted) for wanted in (True, False)]
    kernel_s, nodes_s = least_s([lambda one=one: one.encode(pixels) for one in runtimes], turns)  # type: ignore[misc]
    return [*rows, Row(f"{path.name}: encoder in {folder.precision}", 1000 * kernel_s, 1000 * nodes_s)]


def attentions(config: ModelConfig) -> dict[tuple[int, int, int, int, int, int], tuple[int, int]]:
    """Sizes of an encoder's attentions, as `kernels.attention.work` takes them, with the first block that has them and
    how many do."""
    found: dict[tuple[int, int, int, int, int, int], tuple[int, int]] = {}
    for index, block in enumerate(config.blocks):
        sizes = _sizes(block, config.grid)
        first, count = found.get(sizes, (index, 0))
        found[sizes] = first, count + 1
    return found


def _sizes(block: BlockConfig, grid: int) -> tuple[int, int, int, int, int, int]:
    side = block.window or grid
    # windows that reach over the edge are filled up
    batch = (-(-grid // side)) ** 2
    return batch, block.heads, side, side, block.qk // block.heads, block.v // block.heads


def least_s(calls: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """The least processor time of each call, in turn, after one that is not counted."""
    for call in calls:
        call()
    times = [[_taken_s(call) for call in calls] for _ in range(turns)]
    return [min(column) for column in zip(*times, strict=True)]


def _taken_s(call: Callable[[], object]) -> float:
    start = process_time()
    call()
    return process_time() - start


if __name__ == "__main__":
    main()
