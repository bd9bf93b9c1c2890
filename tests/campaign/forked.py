"""Commands in processes of their own, forked from one that has imported everything: a torch takes seconds to import.

What ends a process here is what ends it in life: signals, limits of the system, other users. Linux.
"""

import contextlib
import importlib
import os
import pkgutil
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

HANG_SECONDS = 30.0
"""Longest that a command may take over a small input, of a processor's time."""
MEMORY_BYTES = 3 << 30
"""Address space that a command may take beyond what its imports have."""
NOBODY = 65534
TRACEBACK = 70
"""Exit code of a process that ended with one."""


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    code: int
    """Exit code; minus the signal's number where one ended it."""
    out: str
    err: str
    seconds: float
    hung: bool = False
    """Whether it was killed for taking longer than it may."""

    @property
    def trouble(self) -> str | None:
        """What no input may lead to: a hang, a traceback, a crash, an error that is not one line; None otherwise."""
        said = [line for line in self.err.splitlines() if line.startswith("sam-edge: ")]
        if self.hung:
            return "hang"
        if self.code < 0:
            return f"crash: signal {-self.code}"
        if "Traceback (most recent call last)" in self.err or self.code == TRACEBACK:
            return f"traceback: {self.err.strip().splitlines()[-1][:160]}"
        if self.code == 1 and len(said) != 1:
            return f"{len(said)} lines of error"
        return None if self.code in (0, 1, 2) else f"exit code {self.code}"


class Running:
    """A function that runs in a forked process, with stdout and stderr in files."""

    def __init__(self, work: Callable[[], object], scratch: Path) -> None:
        self._files = scratch / "stdout", scratch / "stderr"
        sys.stdout.flush()
        sys.stderr.flush()
        self._started = monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(work)
        self._ended = os.pidfd_open(self.pid)

    def _child(self, work: Callable[[], object]) -> None:
        code = TRACEBACK
        try:
            for descriptor, file in zip((1, 2), self._files, strict=True):
                opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, descriptor)
            # whatever stood for them in the parent, a test's capture say
            sys.stdout = open(1, "w", closefd=False, errors="surrogateescape")  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False, errors="surrogateescape")  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        return bool(select.select([self._ended], [], [], seconds)[0])

    def ending(self, seconds: float = HANG_SECONDS) -> Ending:
        """How it ended; killed if it takes longer."""
        in_time = self.wait(seconds)
        if not in_time:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._ended)
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in self._files)
        return Ending(os.waitstatus_to_exitcode(status), out, err, monotonic() - self._started, not in_time)


def command(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str] | None = None,
    *,
    file_bytes: int = -1,
    nobody: bool = False,
) -> Callable[[], None]:
    """`sam-edge ARGUMENTS` in `folder`, where it may take so much memory and write files of so many bytes; if `nobody`,
    as a user who owns nothing."""

    def work() -> None:
        from sam_edge.cli import main

        os.chdir(folder)
        os.environ.update(environment or {})
        limit_memory()
        if file_bytes >= 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        if nobody and os.getuid() == 0:
            os.setuid(NOBODY)
        sys.argv = ["sam-edge", *arguments]
        main()

    return work


def limit_memory() -> None:
    """Let this process take `MEMORY_BYTES` more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def import_all() -> None:
    """Everything that commands import, before any is forked; no thread is started, for none would live on in a fork."""
    import onnxruntime  # noqa: F401
    import torch

    import sam_edge.cli
    from sam_edge.commands import device, workshop

    assert sam_edge.cli is not None
    for folder in (device, workshop):
        for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
            importlib.import_module(module.name)
    torch.set_num_threads(1)
