"""The compiled kernels: a shared library beside this file, where a compiler was at hand when sam-edge was installed.

`SAM_EDGE_KERNELS=off` does without it, and `SAM_EDGE_KERNELS=FILE` takes another build. Nothing needs it.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

from sam_edge.errors import BackendUnavailableError

LIBRARY = Path(__file__).with_name("libsam_edge.so")
"""What setup.py builds, called the same on every system."""
SWITCH = "SAM_EDGE_KERNELS"
LEVELS = ("plain", "AVX2", "AVX-512", "AVX-512 BF16")
"""Instruction sets that the kernels are compiled for, by csrc's numbers. ARM64's plain one is NEON; the last one's
products are of bfloat16, which float models are not given."""


def library_file() -> Path | None:
    """The file of the compiled kernels, where there are some and they are wanted.

    Raises:
        BackendUnavailableError: `SAM_EDGE_KERNELS` names no library of kernels.
    """
    asked = os.environ.get(SWITCH, "")
    if asked == "off":
        return None
    file = Path(asked) if asked else LIBRARY
    if _load(file) is not None:
        return file
    if asked:
        raise BackendUnavailableError(f"{SWITCH} must be off or a file of compiled kernels, got {asked}.")
    return None


def library() -> ctypes.CDLL | None:
    """The compiled kernels, where there are some and they are wanted.

    Raises:
        BackendUnavailableError: see `library_file`.
    """
    file = library_file()
    return None if file is None else _load(file)


def level(*, rounded: bool = False) -> str:
    """The instruction set that the kernels take on this processor; empty without kernels.

    `rounded`: where products of bfloat16 will do.
    """
    kernels = library()
    return "" if kernels is None else LEVELS[kernels.sam_edge_best_level(int(rounded))]


def loaded(level: str | None) -> tuple[ctypes.CDLL, int]:
    """The compiled kernels, and the number of one of `LEVELS` that the processor has; of None, of its best in float32.

    Raises:
        BackendUnavailableError: there are no kernels, or not this level.
    """
    kernels = library()
    if kernels is None:
        raise BackendUnavailableError("there are no compiled kernels here: install a C++ compiler, then sam-edge.")
    best = kernels.sam_edge_best_level(1)
    number = kernels.sam_edge_best_level(0) if level is None else LEVELS.index(level)
    if number > best:
        raise BackendUnavailableError(f"this processor has no {level}: its kernels' level is {LEVELS[best]}.")
    return kernels, number


@cache
def _load(file: Path) -> ctypes.CDLL | None:
    try:
        kernels = ctypes.CDLL(str(file))
        kernels.sam_edge_attention_workspace.restype = ctypes.c_int64
        for name in ("attention", "gelu_of_integers", "gelu_to_integers"):
            getattr(kernels, f"sam_edge_{name}").restype = None
    except (OSError, AttributeError):
        # absent, or of another system
        return None
    return kernels
