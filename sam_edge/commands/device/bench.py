"""`sam-edge bench`: latency, memory, sizes and MACs of models on runtimes."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sam_edge.bench.latency import MEASUREMENTS, bench_runtimes
from sam_edge.bench.memory import file_bytes, peak_bytes
from sam_edge.bench.table import BenchRow
from sam_edge.commands.common import OnProgress, Picture, counting
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.cost import Cost
from sam_edge.segment.known import KNOWN, PACKAGED, shipped_folder
from sam_edge.segment.runtime import Runtime


def bench(
    specs: Sequence[str],
    runtimes: Sequence[str],
    *,
    image: Picture | None = None,
    memory: bool = True,
    warmup: int = 2,
    runs: int = 10,
    min_seconds: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> list[BenchRow]:
    """Latency of every model on every runtime, taking turns; memory of a fresh process each; sizes and MACs."""
    picture = some_picture(seed) if image is None else image
    wanted = [(spec, runtime) for spec in specs for runtime in runtimes or ("auto",)]
    opened = [open_runtime(spec, runtime, device) for spec, runtime in wanted]
    on_run = counting(len(MEASUREMENTS) * (warmup + runs) * len(opened), "timing", on_progress)
    latencies = bench_runtimes(opened, picture, warmup=warmup, runs=runs, min_seconds=min_seconds, on_run=on_run)
    rows = []
    for (spec, _), runtime, latency in zip(wanted, opened, latencies, strict=True):
        counted = cost_of(runtime)
        rows.append(
            BenchRow(
                model=spec,
                runtime=runtime.name,
                precision=precision_of(runtime),
                parameters=None if counted is None else counted.parameters,
                encoder_macs=None if counted is None else counted.encoder_macs,
                encoder_macs_with_attention=None if counted is None else counted.encoder_macs_with_attention,
                file_bytes=size_of(spec, runtime),
                peak_bytes=_peak(spec, runtime.name, picture, device) if memory else None,
                latencies=latency,
                kernels=bool(getattr(runtime, "with_kernels", ())),
            )
        )
    return rows


def some_picture(seed: int, size: int = 512) -> Picture:
    """Seeded blobs of colour: a picture to time on where none is given, since no time depends on what it shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def cost_of(runtime: Runtime) -> Cost | None:
    """Parameters and MACs of what a runtime runs, where they are known: torch counts them, exports carry them."""
    return getattr(runtime, "cost", None)


def precision_of(runtime: Runtime) -> str:
    """fp32, fp16 or int8; a quantized checkpoint in torch is simulated, and says so."""
    folder = getattr(runtime, "folder", None)
    if isinstance(folder, ExportedFolder):
        return folder.precision
    return "fp32" if runtime.config.quantization is None else "int8 simulated"


def size_of(spec: str, runtime: Runtime) -> int | None:
    """Bytes on disk of what the runtime ran, or of the checkpoint; None for weights that have no file."""
    folder = getattr(runtime, "folder", None)
    if isinstance(folder, ExportedFolder):
        return file_bytes(folder.path, pattern="*.engine" if runtime.name == "tensorrt" else "*.onnx*")
    if Path(spec).exists():
        return file_bytes(Path(spec))
    if spec in KNOWN and KNOWN[spec].source == PACKAGED:
        return file_bytes(shipped_folder(spec))
    return None


def _peak(spec: str, runtime: str, picture: Picture, device: str) -> int:
    """Peak memory of a process that opens the model and segments one picture by one point."""
    height, width = picture.shape[:2]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture.png"
        Image.fromarray(picture).save(file)
        point = f"{width // 2},{height // 2}"
        command = [sys.executable, "-m", "sam_edge", "segment", spec, str(file), "--point", point, "--runtime", runtime]
        return peak_bytes([*command, "--device", device, "--out", str(Path(scratch) / "masks")], timeout_s=600)
