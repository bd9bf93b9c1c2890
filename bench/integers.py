"""The race of integer encoders against float ones, and against ONNX Runtime's own quantization of the same graph.

Contenders take turns; each turn is a process of its own, so that no more than one holds its memory: at SAM-B's size
ONNX Runtime keeps several gigabytes. A ratio is the median, over turns, of the float graph's time by the contender's in
the same turn. Processor time stands beside wall time: on a machine that others use too it is the steadier of the two.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime as ort
from jaxtyping import Float
from rich.table import Table

from sam_edge.bench.units import size
from sam_edge.errors import BenchError


@dataclass(frozen=True)
class Contender:
    """A graph on a runtime."""

    runtime: str
    """`onnxruntime`, `openvino` or `openvino-bf16`."""
    file: Path
    """A graph, which its runtime alone runs, or an exported folder, opened as sam-edge opens it."""

    @property
    def graph(self) -> Path:
        """The encoder's file."""
        return self.file / "encoder.onnx" if self.file.is_dir() else self.file

    @property
    def file_bytes(self) -> int:
        """Of the graph, and of OpenVINO's weights beside it."""
        weights = self.graph.with_suffix(".bin")
        beside = weights.stat().st_size if self.graph.suffix == ".xml" else 0
        return self.graph.stat().st_size + beside


@dataclass(frozen=True)
class Turns:
    """What one contender took, turn by turn."""

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    """Processor time of all threads."""
    peak_bytes: int
    file_bytes: int
    agreement: float | None = None
    """Mean IoU of the float model's masks with those that its decoder gives behind this encoder."""

    def ratio(self, other: "Turns", clock: str) -> float:
        """Median over turns of the other's time by this one's, by `wall_ms` or `cpu_ms`."""
        pairs = zip(getattr(other, clock), getattr(self, clock), strict=True)
        return median(theirs / mine for theirs, mine in pairs)


def quantize_by_onnxruntime(
    graph: Path, folder: Path, pictures: Iterable[Float[np.ndarray, "1 3 s s"]]
) -> dict[str, Path]:
    """ONNX Runtime's own `quantize_static` (Q/DQ, calibrated on `pictures`) and `quantize_dynamic`, int8 weights.

    Per tensor, as by default: per channel both write products with tables of positions that the runtime refuses.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        MinMaxCalibrater,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.left, None)
            return None if picture is None else {"pixels": picture}

    prepared = folder / "prepared.onnx"
    quant_pre_process(graph, prepared, skip_symbolic_shape=True)
    files = {"static": folder / "static.onnx", "dynamic": folder / "dynamic.onnx"}
    quantize_dynamic(prepared, files["dynamic"], weight_type=QuantType.QInt8)
    with patch.object(MinMaxCalibrater, "create_inference_session", _open_in_order):
        quantize_static(prepared, files["static"], Reader(), weight_type=QuantType.QInt8)
    return files


def quantize_by_nncf(graph: Path, folder: Path, pictures: Sequence[Float[np.ndarray, "1 3 s s"]]) -> Path:
    """NNCF's own post-training quantization for OpenVINO, by its preset for transformers, calibrated on `pictures`.

    Raises:
        ModuleNotFoundError: NNCF is not installed.
    """
    import nncf
    import openvino

    given = [{"pixels": picture} for picture in pictures]
    quantized = nncf.quantize(
        openvino.Core().read_model(graph),
        nncf.Dataset(given),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(given),
    )
    file = folder / "nncf.xml"
    openvino.save_model(quantized, file, compress_to_fp16=False)
    return file


def _open_in_order(calibrater: Any) -> None:
    """Run the calibrated graph as its nodes stand.

    ONNX Runtime's default order takes all ranges at the end, and no tensor is freed before: more than 24 GB of SAM-B's,
    where this takes 5.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    calibrater.infer_session = ort.InferenceSession(
        calibrater.augmented_model_path, options, providers=calibrater.execution_providers
    )


def race(
    contenders: Mapping[str, Contender],
    *,
    side: int,
    threads: int,
    turns: int = 3,
    on_turn: Callable[[int, int, str], None] | None = None,
) -> dict[str, Turns]:
    """Time every contender once per turn, on one picture of `side` pixels.

    Raises:
        BenchError: a graph that its runtime cannot open or run.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for turn in range(turns):
        for index, (name, contender) in enumerate(contenders.items()):
            if on_turn is not None:
                on_turn(turn * len(contenders) + index, turns * len(contenders), name)
            found[name].append(_turn(name, contender, side, threads))
    return {
        name: Turns(
            wall_ms=tuple(time for result in results for time in result["wall_ms"]),
            cpu_ms=tuple(time for result in results for time in result["cpu_ms"]),
            peak_bytes=max(result["peak_bytes"] for result in results),
            file_bytes=contenders[name].file_bytes,
        )
        for name, results in found.items()
    }


def _turn(name: str, contender: Contender, side: int, threads: int) -> dict[str, Any]:
    script = Path(__file__).with_name("encoder_turn.py")
    arguments = [contender.runtime, contender.file, side, threads, 1]
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode} (-9 is often lack of memory)"]
        raise BenchError(f"{name} does not run: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def ratios(found: Mapping[str, Turns], clock: str = "wall_ms") -> dict[str, float]:
    """How many times as fast `int8` is as the others of its runtime; above 1 it is the faster one.

    `int8_vs_own` is against the better of ONNX Runtime's own two, `openvino_int8_vs_own` against NNCF's.
    """
    pairs = {
        "int8_vs_float": ("onnxruntime int8", ["onnxruntime float"]),
        "int8_vs_own": ("onnxruntime int8", ["onnxruntime static", "onnxruntime dynamic"]),
        "openvino_int8_vs_float": ("openvino int8", ["openvino float"]),
        "openvino_int8_vs_own": ("openvino int8", ["openvino nncf"]),
        "openvino_int8_vs_bf16": ("openvino int8", ["openvino bf16"]),
        "openvino_int8_and_bf16_vs_bf16": ("openvino int8 and bf16", ["openvino bf16"]),
    }
    return {
        key: min(found[mine].ratio(found[name], clock) for name in others if name in found)
        for key, (mine, others) in pairs.items()
        if mine in found and any(name in found for name in others)
    }


def as_dict(found: Mapping[str, Turns]) -> dict[str, Any]:
    """Times and ratios for JSON."""
    return {
        "contenders": {name: asdict(turns) for name, turns in found.items()},
        "ratios": {"wall": ratios(found), "cpu": ratios(found, "cpu_ms")},
    }


def race_table(found: Mapping[str, Turns]) -> Table:
    """The race for a terminal; ratios are to the float graph in the same runtime."""
    table = Table(
        title="encoder, one picture",
        caption="ratios: how many times as fast as float, median over turns; masks: IoU with float's",
    )
    for heading in ("contender", "wall", "ratio", "processor", "ratio", "memory", "file", "masks"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    for name, turns in found.items():
        parent = found[f"{name.split()[0]} float"]
        cells = []
        for clock in ("wall_ms", "cpu_ms"):
            cells += [f"{median(getattr(turns, clock)):.0f} ms", f"{turns.ratio(parent, clock):.2f} x"]
        masks = "" if turns.agreement is None else f"{turns.agreement:.4f}"
        table.add_row(name, *cells, size(turns.peak_bytes), size(turns.file_bytes), masks)
    return table
