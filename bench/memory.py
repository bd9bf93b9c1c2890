"""How much a model takes: peak resident memory of a fresh process, and bytes on disk."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sam_edge.bench import nvml
from sam_edge.errors import BackendUnavailableError, BenchError, CheckpointError

DEVICE_LOOKS_EVERY_S = 0.02
"""Between two readings of a GPU's memory."""

WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data", ".engine", ".pth", ".pt", ".bin", ".xml")
"""Files that a device needs to run a model; `.data` holds ONNX's weights, `.bin` and `.xml` OpenVINO's."""

SPLIT_GRAPHS = ("prepare", "predict", "upscale")
"""The decoder again, in three parts for everything mode."""


@dataclass(frozen=True)
class Taken:
    """What a command took."""

    peak_bytes: int
    """Peak resident size."""
    wall_s: float
    """From start to end."""
    cpu_s: float
    """Processor time of all its threads."""
    device_bytes: int | None = None
    """Most memory in use on all GPUs meanwhile, beyond what was in use before; None where no GPU tells."""


def run_alone(
    command: Sequence[str],
    timeout_s: float,
    *,
    limits: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Taken:
    """What `command` takes, run in a fresh process with its output thrown away.

    `limits` are the launcher's: ("--address-space", BYTES), ("--group", FOLDER). `environment` is added to ours.

    Where the command starts others of its own, the largest single process counts, not their sum. Memory on a
    GPU is not resident memory, and is told apart. The smallest answer possible is some 10 MB, the launcher's own size.

    Raises:
        BenchError: the command cannot be started, fails (its last stderr line is quoted), or takes too long.
        BackendUnavailableError: this system cannot tell (Windows).
    """
    if not hasattr(os, "wait4"):
        raise BackendUnavailableError(
            "peak memory is measured with wait4, which this system lacks: use Linux or macOS."
        )
    # Linux carries a process's own peak over into the child it starts, so a command started from here would
    # seem to need at least what this process, with torch, has needed. A small launcher starts it instead.
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("memory_launcher.py"))]
    launcher += [*limits, *command]
    with tempfile.TemporaryFile() as stderr, _device_peak() as device_bytes:
        process = subprocess.Popen(
            launcher,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=None if environment is None else {**os.environ, **environment},
        )
        try:
            answer, _ = process.communicate(timeout=timeout_s)
        except BaseException as error:
            # the command belongs to the launcher's session, and must not outlive it
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise BenchError(f"{command[0]} took longer than {timeout_s:g} s: raise the time limit.") from None
            raise
        stderr.seek(0)
        lines = stderr.read().decode(errors="replace").strip().splitlines()
    last = lines[-1].strip() if lines else "it wrote nothing to stderr"
    if process.returncode != 0:
        raise BenchError(f"{command[0]} could not be started: {last}")
    result = json.loads(answer)
    if result["exit_code"] < 0:
        raise BenchError(
            f"{command[0]} was killed by signal {-result['exit_code']} (9 is often lack of memory): {last}"
        )
    if result["exit_code"] > 0:
        raise BenchError(f"{command[0]} failed with exit code {result['exit_code']}: {last}")
    # getrusage counts KiB, but for macOS, which counts bytes
    peak = int(result["ru_maxrss"]) * (1 if sys.platform == "darwin" else 1024)
    return Taken(peak, result["wall_s"], result["cpu_s"], device_bytes())


@contextmanager
def _device_peak() -> Iterator[Callable[[], int | None]]:
    """The most memory in use on GPUs within, beyond what was before: read now and then, by a thread of this process."""
    before = nvml.used_bytes()
    if before is None:
        yield lambda: None
        return
    most, done = before, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(DEVICE_LOOKS_EVERY_S):
            most = max(most, nvml.used_bytes() or 0)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: most - before
    finally:
        done.set()
        thread.join()


def file_bytes(path: str | Path, *, pattern: str = "*") -> int:
    """Bytes of a model on disk: a checkpoint file, or a folder's own files of `WEIGHT_SUFFIXES`.

    The split decoder graphs do not count beside the whole decoder, which holds the same weights. Where one
    folder serves several runtimes, `pattern` says which files are meant: `*.sm89.engine`, `*.onnx*`.

    Raises:
        CheckpointError: nothing there, or no weight file.
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist: its size cannot be taken.")
    files = [f for f in path.iterdir() if f.suffix in WEIGHT_SUFFIXES and fnmatch(f.name, pattern) and f.is_file()]
    if any(_graph(file) == "decoder" for file in files):
        files = [file for file in files if _graph(file) not in SPLIT_GRAPHS]
    if not files:
        raise CheckpointError(f"{path} holds no weight file ({', '.join(WEIGHT_SUFFIXES)}) named {pattern}.")
    return sum(file.stat().st_size for file in files)


def _graph(file: Path) -> str:
    return file.name.split(".")[0]
