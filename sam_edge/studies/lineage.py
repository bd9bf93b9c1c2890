"""`sam-edge study lineage WORK`: what compression and integers gain over the machine's own.

Every network in every form takes turns, each turn in a process of its own, and a bar is the ratio of medians that the
toolkit has to keep to. Peers are float: the yardstick, the graph that commit `YARDSTICK` exports, in ONNX Runtime; and
today's graph in OpenVINO's bfloat16 where the processor has it, both by the runtime alone. Today's best float, with
sam-edge's kernels, stands beside them. Weights are random, as no encoder's time depends on them.

What is missing in WORK is made there first, which takes minutes and some gigabytes, once. The yardstick needs a git
checkout: its commit is exported by its own code.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sam_edge.bench.disturbance import Watch
from sam_edge.bench.hardware import hardware
from sam_edge.bench.integers import Contender, Turns, race
from sam_edge.bench.provenance import model_sha256, provenance
from sam_edge.files import atomic_file
from sam_edge.models.cost import cost
from sam_edge.runtimes.openvino_runtime import float_runtimes
from sam_edge.runtimes.processor import features
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.known import KNOWN
from sam_edge.studies.measuring import parser_of

YARDSTICK = "2f084df"
"""Before sam-edge had kernels of its own, and its exports one GELU operator."""
NETWORKS = ("vit_b", "slimsam-77", "vit_t", "nano-vit")
CALLED_THEN = {"nano-vit": "nano"}
"""Names that were others at the yardstick's commit."""
EXPORT_BY_THE_YARDSTICK = """
import sys
from pathlib import Path
from sam_edge.export.to_onnx import OnnxOptions, write_encoder
from sam_edge.models.known import KNOWN
from sam_edge.models.sam import EdgeSam, initialise
model = EdgeSam(KNOWN[sys.argv[1]].config)
initialise(model, seed=0)
write_encoder(model.eval(), Path(sys.argv[2]), OnnxOptions())
"""


CLOCKS = ("wall_ms", "cpu_ms")


@dataclass(frozen=True)
class Summary:
    """One form of a network: medians of its turns, and its wall time over its peers'."""

    name: str
    wall_ms: float
    cpu_ms: float
    over_yardstick: float | None
    over_best_float: float
    peak_bytes: int


def summaries(turns: Mapping[str, Mapping[str, Any]], network: str) -> list[Summary]:
    """A network's forms, of the `turns` that a file of results holds."""
    forms = {name: one for name, one in turns.items() if name.split(" ")[0] == network}
    wall, cpu = ({name: median(one[clock]) for name, one in forms.items()} for clock in CLOCKS)
    best = min(ms for name, ms in wall.items() if " int8 " not in name)
    yardstick = wall.get(f"{network} yardstick")
    return [
        Summary(
            name, ms, cpu[name], None if yardstick is None else ms / yardstick, ms / best, forms[name]["peak_bytes"]
        )
        for name, ms in wall.items()
    ]


@dataclass(frozen=True)
class Bar:
    """How much of its peers' time a network's integers may take: of the fastest of each."""

    ours: tuple[str, ...]
    peers: tuple[str, ...]
    most: float

    def ratio(self, ms: Mapping[str, float]) -> float | None:
        """Of the times of those that ran; None where a side has none."""
        ours, peers = ([ms[name] for name in names if name in ms] for names in (self.ours, self.peers))
        return min(ours) / min(peers) if ours and peers else None


BARS = (
    Bar(("slimsam-77 int8 onnxruntime",), ("vit_b yardstick",), 1 / 7.5),
    Bar(("slimsam-77 int8 onnxruntime",), ("slimsam-77 openvino-bf16 alone",), 1.0),
    Bar(("vit_b int8 onnxruntime", "vit_b int8 openvino-bf16"), ("vit_b openvino-bf16 alone",), 0.75),
    Bar(("vit_t int8 onnxruntime",), ("vit_t yardstick",), 0.7),
    Bar(("vit_t int8 onnxruntime", "vit_t int8 openvino-bf16"), ("vit_t openvino-bf16 alone",), 0.85),
    Bar(("nano-vit int8 onnxruntime",), ("nano-vit yardstick",), 0.5),
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Make what is missing, race, print and return."""
    parser = parser_of("lineage", __doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cpu_threads())
    parser.add_argument("--out", type=Path, help="write all turns and the machine here, as JSON")
    given = parser.parse_args(arguments)
    console = Console()
    found: dict[str, Turns] = {}
    forms = {}
    for network in given.networks:
        with console.status(f"making {network}"):
            forms[network] = made(network, given.work)
    watch = Watch()
    for network in given.networks:
        side = KNOWN[network].config.image_size
        with console.status(f"racing {network}"):
            found |= race(forms[network], side=side, threads=given.threads, turns=given.turns)
    disturbance = watch.so_far()
    machine = {**hardware(), "features": features(), "threads": given.threads, "disturbance": asdict(disturbance)}
    results: dict[str, Any] = {
        "provenance": provenance(
            {f"random:{name}": model_sha256(f"random:{name}") for name in given.networks}, hardware=machine
        ),
        "yardsticks": {name: _sha256(given.work / "yardstick" / name / "encoder.onnx") for name in given.networks},
        "turns": {name: asdict(turns) for name, turns in found.items()},
        "bars": list(_bars(found)),
    }
    console.print(_times(results["turns"], given.networks, machine))
    console.print(_held(results["bars"]))
    if (words := disturbance.words()) is not None:
        console.print(words)
    if given.out is not None:
        with atomic_file(given.out) as work:
            work.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def made(network: str, work: Path) -> dict[str, Contender]:
    """A network's forms on the runtimes that are here."""
    yardstick = work / "yardstick" / network
    if not (yardstick / "encoder.onnx").is_file():
        _export_yardstick(network, yardstick)
    folders = {form: work / f"{network}-{form}" for form in ("float", "int8")}
    for form, folder in folders.items():
        if not (folder / "encoder.onnx").is_file():
            _export(network, form, folder)
    forms = {f"{network} yardstick": Contender("onnxruntime", yardstick / "encoder.onnx")}
    for runtime in float_runtimes():
        forms[f"{network} {runtime} alone"] = Contender(runtime, folders["float"] / "encoder.onnx")
        for form, folder in folders.items():
            forms[f"{network} {form} {runtime}"] = Contender(runtime, folder)
    return forms


def _export_yardstick(network: str, folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        archive = subprocess.run(["git", "-C", root, "archive", YARDSTICK], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        for part in ("export", "kernels", "bench"):
            (source / "sam_edge" / part).symlink_to(source / part)
        code = [sys.executable, "-c", EXPORT_BY_THE_YARDSTICK, CALLED_THEN.get(network, network), str(folder.resolve())]
        subprocess.run(code, cwd=source, env={**os.environ, "PYTHONPATH": str(source)}, check=True)


def _export(network: str, form: str, folder: Path) -> None:
    from sam_edge.export.to_onnx import OnnxOptions, write_encoder
    from sam_edge.models.sam import EdgeSam, initialise
    from sam_edge.quantize.ptq import QuantizeOptions, quantize_model

    folder.mkdir(parents=True, exist_ok=True)
    model = EdgeSam(KNOWN[network].config).eval()
    initialise(model, seed=0)
    options = OnnxOptions()
    if form == "int8":
        picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        quantize_model(model, [picture], QuantizeOptions(metric="minmax"))
        options = OnnxOptions("int8", products="none")
    write_encoder(model, folder, options)


def _bars(found: Mapping[str, Turns]) -> Iterator[dict[str, Any]]:
    wall, cpu = ({name: median(getattr(turns, clock)) for name, turns in found.items()} for clock in CLOCKS)
    for bar in BARS:
        ratio = bar.ratio(wall)
        if ratio is not None:
            yield {**asdict(bar), "ratio": ratio, "processor_ratio": bar.ratio(cpu)}


def _times(turns: Mapping[str, Mapping[str, Any]], networks: Sequence[str], machine: Mapping[str, Any]) -> Table:
    table = Table(
        title="encoder, one picture, medians in turn",
        caption=f"{machine['cpu']} ({', '.join(machine['features'])}), {machine['threads']} threads; "
        f"yardstick: float as at {YARDSTICK}, in ONNX Runtime alone",
    )
    for heading in ("", "wall", "processor", "/ yardstick", "/ best float", "GMAC/s", "memory"):
        table.add_column(heading, justify="right" if heading else "left")
    for network in networks:
        macs = cost(KNOWN[network].config).encoder_macs_with_attention
        for form in summaries(turns, network):
            assert form.over_yardstick is not None
            table.add_row(
                form.name,
                f"{form.wall_ms:.0f} ms",
                f"{form.cpu_ms:.0f} ms",
                f"{form.over_yardstick:.2f}",
                f"{form.over_best_float:.2f}",
                f"{macs / form.wall_ms / 1e6:.0f}",
                f"{form.peak_bytes / 1e9:.2f} GB",
            )
    return table


def _held(bars: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="bars")
    for heading in ("of", "over", "ratio", "of processor time", "at most", "held"):
        table.add_column(heading, justify="left" if heading in ("of", "over") else "right")
    for bar in bars:
        held = "yes" if bar["ratio"] <= bar["most"] else "no"
        names = (" or ".join(bar[side]) for side in ("ours", "peers"))
        numbers = (f"{bar[key]:.3f}" for key in ("ratio", "processor_ratio", "most"))
        table.add_row(*names, *numbers, held)
    return table


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
