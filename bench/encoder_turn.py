"""Run as a script by `integers.race`: time one encoder in a process of its own, and print what it took as JSON.

A file is run by its runtime alone, and nothing of sam-edge: a turn's memory is the runtime's. A folder is opened as
sam-edge opens it, with its own kernels where they are. The pixels are noise, since no encoder's time depends on them.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np


def main(runtime: str, file: str, side: str, threads: str, runs: str) -> None:
    """Print `{"wall_ms", "cpu_ms"}` of each counted run after two that are not, and `peak_bytes`."""
    call = opened(runtime, Path(file), int(threads))
    pixels = np.random.default_rng(0).standard_normal((1, 3, int(side), int(side)), dtype=np.float32)
    for _ in range(2):
        # the first allocates, the second still meets memory for the first time
        call(pixels)
    wall_ms, cpu_ms = [], []
    for _ in range(int(runs)):
        wall, cpu = perf_counter(), process_time()
        call(pixels)
        wall_ms.append(1000 * (perf_counter() - wall))
        cpu_ms.append(1000 * (process_time() - cpu))
    print(json.dumps({"wall_ms": wall_ms, "cpu_ms": cpu_ms, "peak_bytes": _peak_bytes()}))


def opened(runtime: str, path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """An encoder: pixels 1 x 3 x S x S to embeddings, an array but of a folder, whose runtime keeps them as it does."""
    encode = _sam_edge if path.is_dir() else _onnxruntime if runtime == "onnxruntime" else _openvino
    return encode(path, runtime, threads)


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage's peak is carried over from the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _onnxruntime(file: Path, runtime: str, threads: int) -> Callable[[np.ndarray], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def _sam_edge(folder: Path, runtime: str, threads: int) -> Callable[[np.ndarray], object]:
    from sam_edge.runtimes.open import open_runtime

    os.environ["OMP_NUM_THREADS"] = str(threads)
    return open_runtime(folder, runtime, "cpu").encode


def _openvino(file: Path, runtime: str, threads: int) -> Callable[[np.ndarray], object]:
    import openvino

    hint = "bf16" if runtime == "openvino-bf16" else "f32"
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(str(file), "CPU", options).create_infer_request()
    return lambda pixels: request.infer({"pixels": pixels}, share_inputs=True)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
