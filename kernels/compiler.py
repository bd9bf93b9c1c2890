"""The CUDA sources compiled: by NVRTC at first use, and kept; or ahead of time, for devices without it.

    python -m sam_edge.kernels.compiler --target sm87 --out kernels-sm87

writes the files that a device finds in `$SAM_EDGE_CACHE/cuda` (by default ~/.cache/sam-edge/cuda). NVRTC comes with
`cuda-bindings[all]` and with torch's CUDA build; with pycuda alone, the toolkit's nvcc compiles.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from sam_edge.errors import BackendUnavailableError, SamEdgeError
from sam_edge.files import atomic_file, cache_folder
from sam_edge.kernels import attention_half, masks, preprocess, suppression, unpack
from sam_edge.kernels.gpu import CSRC, HEADER, Source

SOURCES = (
    preprocess.SOURCE,
    masks.SOURCE,
    suppression.SOURCE,
    *attention_half.SOURCES.values(),
    unpack.SOURCE,
)
"""All there are."""
TARGETS = ("sm75", "sm80", "sm86", "sm87", "sm88", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
"""Compute capabilities that the sources are written for: those that CUDA 13's NVRTC knows."""
OPTIONS = ("--std=c++17",)


@dataclass(frozen=True)
class Compiled:
    """A source for one compute capability."""

    cubin: bytes
    log: str
    """What the assembler says of registers, spills and shared memory, if asked for."""


def compile_source(source: Source, target: str, *, verbose: bool = False) -> Compiled:
    """A source as machine code for `target`, as `sm89`.

    Raises:
        BackendUnavailableError: neither NVRTC nor nvcc is here.
        SamEdgeError: it does not compile: an architecture that the compiler does not know.
    """
    nvrtc = _nvrtc()
    if nvrtc is None:
        return Compiled(_by_nvcc(source, target), "")
    header = (CSRC / HEADER).read_bytes()
    program = _checked(
        nvrtc,
        nvrtc.nvrtcCreateProgram(source.file.read_bytes(), source.file.name.encode(), 1, [header], [HEADER.encode()]),
    )
    try:
        options = [f"--gpu-architecture=sm_{target.removeprefix('sm')}", *OPTIONS]
        options += [f"--define-macro={define}" for define in source.defines]
        options += ["--ptxas-options=-v"] if verbose else []
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        log = _text(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        if int(result):
            why = " ".join(log.replace("\0", "").split()) or nvrtc.nvrtcGetErrorString(result)[1].decode()
            raise SamEdgeError(f"{source.file.name} does not compile for {target}: {why}.")
        cubin = _text(nvrtc, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return Compiled(cubin, log.replace("\0", ""))
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def cubin_of(source: Source, target: str) -> bytes:
    """A source's machine code, compiled if it is not kept yet.

    Raises:
        BackendUnavailableError, SamEdgeError: see `compile_source`.
    """
    folder, compiler = cache_folder() / "cuda", compiler_version()
    # without a compiler any that was compiled from this source will do
    kept = sorted(folder.glob(file_name(source, target, compiler or "*")))
    if kept:
        return kept[-1].read_bytes()
    cubin = compile_source(source, target).cubin
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / file_name(source, target, compiler)) as out:
            out.write_bytes(cubin)
    except (OSError, SamEdgeError):
        # it is compiled again the next time
        pass
    return cubin


def file_name(source: Source, target: str, compiler: str) -> str:
    """What a source's machine code is kept as: it changes with the source, its macros and options, and the compiler."""
    parts = [source.file.read_bytes(), (CSRC / HEADER).read_bytes(), *(x.encode() for x in (*source.defines, *OPTIONS))]
    digest = sha256(b"\0".join(parts)).hexdigest()[:16]
    return f"{source.label}.{target}.{digest}.{compiler}.cubin"


def compiler_version() -> str:
    """As `nvrtc13.0`; empty where there is no compiler."""
    nvrtc = _nvrtc()
    if nvrtc is not None:
        _, major, minor = nvrtc.nvrtcVersion()
        return f"nvrtc{major}.{minor}"
    return "nvcc" if _pycuda_compiler() is not None else ""


@cache
def _nvrtc() -> Any:
    """cuda.bindings' NVRTC; None where it or the library that it loads is absent."""
    try:
        from cuda.bindings import nvrtc

        result, *_ = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    return nvrtc if int(result) == 0 else None


@cache
def _pycuda_compiler() -> Any:
    try:
        from pycuda import compiler
    except ImportError:
        return None
    return compiler


def _by_nvcc(source: Source, target: str) -> bytes:
    compiler = _pycuda_compiler()
    if compiler is None:
        raise BackendUnavailableError(
            f"there is no compiler for CUDA kernels here: pip install 'cuda-bindings[all]', or copy what `python -m "
            f"sam_edge.kernels.compiler --target {target}` writes elsewhere to {cache_folder() / 'cuda'}."
        )
    try:
        cubin: bytes = compiler.compile(
            source.file.read_text(),
            no_extern_c=True,
            arch=f"sm_{target.removeprefix('sm')}",
            include_dirs=[str(CSRC)],
            options=[*OPTIONS, *(f"--define-macro={define}" for define in source.defines)],
        )
    except Exception as error:
        # pycuda's own, of a module that need not be there
        raise SamEdgeError(
            f"{source.file.name} does not compile for {target}: {' '.join(str(error).split())}."
        ) from error
    return cubin


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    result, *values = answer
    if int(result):
        raise SamEdgeError(f"NVRTC fails: {nvrtc.nvrtcGetErrorString(result)[1].decode()}.")
    return values[0] if values else None


def _text(nvrtc: Any, size: Any, get: Any, program: Any) -> bytes:
    length = int(_checked(nvrtc, size(program)))
    # written in place: Python has one object for all equal bytes of length 0, and of length 1
    text = bytes(length + 2)
    _checked(nvrtc, get(program, text))
    return text[:length]


def main(arguments: list[str] | None = None) -> None:
    """Compile all sources ahead of time."""
    parser = argparse.ArgumentParser(prog="python -m sam_edge.kernels.compiler", description=__doc__)
    parser.add_argument("--target", action="append", required=True, choices=TARGETS, help="compute capability; repeat")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for target in options.target:
            for source in SOURCES:
                with atomic_file(options.out / file_name(source, target, compiler_version())) as out:
                    out.write_bytes(compile_source(source, target).cubin)
    except (SamEdgeError, OSError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
