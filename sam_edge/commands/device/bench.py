"""`sam-edge bench`: latency, memory, energy, sizes and MACs of models on runtimes."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam_edge.bench.energy import counters, joules_per_call
from sam_edge.bench.latency import Call, Candidate, bench_candidates, runtime_calls, synchroniser
from sam_edge.bench.memory import Taken, file_bytes, run_alone
from sam_edge.bench.provenance import used_sha256
from sam_edge.bench.table import BenchRow
from sam_edge.commands.common import OnProgress, Picture, counting
from sam_edge.errors import BenchError
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.open import open_runtime
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.cost import Cost
from sam_edge.segment.known import KNOWN, PACKAGED, shipped_folder
from sam_edge.segment.runtime import Runtime

POWERED = ("encode", "end_to_end")
"""Measurements whose energy is counted, where anything counts it."""
Others = Callable[[str, Picture], Mapping[str, Call]]
"""Somebody else's way of running a MODEL: its calls on a picture, by measurement."""


def bench(
    specs: Sequence[str],
    runtimes: Sequence[str],
    *,
    image: Picture | None = None,
    memory: bool = True,
    warmup: int = 2,
    runs: int = 10,
    min_seconds: float = 0.0,
    batches: Sequence[int] = (),
    threads: Sequence[int] = (),
    others: Mapping[str, Others] | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> list[BenchRow]:
    """Latency of every model on every runtime, taking turns; what a fresh process of each takes; sizes and MACs.

    Args:
        batches: numbers of pictures to encode at once, besides one.
        threads: numbers of threads, each a contender of its own; as many as there are cores without any.
        others: further ways to run each of the models, by name.

    Raises:
        BenchError: fewer than one run, one picture or one thread.
    """
    if any(count < 1 for count in threads):
        raise BenchError(f"threads must be at least 1, got {', '.join(map(str, threads))}.")
    picture = some_picture(seed) if image is None else image
    wanted = [
        (spec, runtime, count) for spec in specs for runtime in runtimes or ("auto",) for count in threads or (0,)
    ]
    opened: list[Runtime] = []
    candidates: list[Candidate] = []
    for spec, name, count in wanted:
        with given_threads(count):
            runtime = open_runtime(spec, name, device)
            before = _torch_threads(count) if count and runtime.name == "torch" else None
            candidates.append(Candidate(runtime_calls(runtime, picture, batches), synchroniser(runtime), before))
        opened.append(runtime)
    foreign = [(spec, name) for spec in specs for name in others or ()]
    # a sweep leaves torch at its last number of threads
    plain = _torch_threads(cpu_threads()) if threads and foreign else None
    candidates += [Candidate((others or {})[name](spec, picture), before=plain) for spec, name in foreign]
    total = (warmup + runs) * sum(len(candidate.calls) for candidate in candidates)
    on_run = counting(total, "timing", on_progress)
    latencies = bench_candidates(candidates, warmup=warmup, runs=runs, min_seconds=min_seconds, on_run=on_run)
    rows = []
    with counters() as meters:
        for (spec, _, count), runtime, candidate, latency in zip(wanted, opened, candidates, latencies, strict=False):
            counted = cost_of(runtime)
            if candidate.before is not None:
                candidate.before()
            alone = _alone(spec, runtime.name, picture, device, count) if memory else None
            rows.append(
                BenchRow(
                    model=spec,
                    runtime=runtime.name,
                    precision=precision_of(runtime),
                    threads=count or cpu_threads(),
                    model_sha256=used_sha256(spec),
                    parameters=None if counted is None else counted.parameters,
                    encoder_macs=None if counted is None else counted.encoder_macs,
                    encoder_macs_with_attention=None if counted is None else counted.encoder_macs_with_attention,
                    file_bytes=size_of(spec, runtime),
                    peak_bytes=None if alone is None else alone.peak_bytes,
                    device_peak_bytes=None if alone is None else alone.device_bytes,
                    cold_start_s=None if alone is None else alone.wall_s,
                    cold_start_cpu_s=None if alone is None else alone.cpu_s,
                    energy_j={
                        key: joules_per_call(candidate.calls[key], meters, candidate.synchronise)
                        for key in (POWERED if meters else ())
                    },
                    latencies=latency,
                    kernels=bool(getattr(runtime, "with_kernels", ())),
                )
            )
    for (spec, name), latency in zip(foreign, latencies[len(wanted) :], strict=True):
        rows.append(
            BenchRow(
                model=spec,
                runtime=name,
                precision="fp32",
                threads=cpu_threads(),
                model_sha256=used_sha256(spec),
                latencies=latency,
            )
        )
    return rows


@contextmanager
def given_threads(count: int) -> Iterator[None]:
    """Runtimes opened within take so many threads on the CPU; 0 leaves it to them."""
    before = os.environ.get("OMP_NUM_THREADS")
    if count:
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if count and before is None:
            del os.environ["OMP_NUM_THREADS"]
        elif count and before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _torch_threads(count: int) -> Call:
    """torch has one number of threads for a whole process, which is set before each call."""
    return lambda: sys.modules["torch"].set_num_threads(count)


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


def _alone(spec: str, runtime: str, picture: Picture, device: str, threads: int) -> Taken:
    """What a process takes that starts, opens the model and segments one picture by one point."""
    height, width = picture.shape[:2]
    environment: dict[str, Any] = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture.png"
        Image.fromarray(picture).save(file)
        point = f"{width // 2},{height // 2}"
        command = [sys.executable, "-m", "sam_edge", "segment", spec, str(file), "--point", point, "--runtime", runtime]
        command += ["--device", device, "--out", str(Path(scratch) / "masks")]
        return run_alone(command, timeout_s=600, environment=environment)
