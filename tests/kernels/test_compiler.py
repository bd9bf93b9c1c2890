"""sam_edge.kernels.compiler: every source compiles for real, and within what its block may have of a GPU."""

import re
from pathlib import Path

import pytest

from sam_edge.errors import BackendUnavailableError, SamEdgeError
from sam_edge.kernels import attention_half, compiler, masks, preprocess, suppression, unpack
from sam_edge.kernels.compiler import (
    SOURCES,
    TARGETS,
    compile_source,
    compiler_version,
    cubin_of,
    file_name,
    main,
)
from sam_edge.kernels.gpu import CSRC

needs_nvrtc = pytest.mark.skipif(not compiler_version().startswith("nvrtc"), reason="NVRTC is not installed")
MOST_REGISTERS = {
    "preprocess": 104,
    "masks": 64,
    "suppression": 64,
    "attention-16": 104,
    "attention-32": 136,
    "attention-48": 168,
    "attention-64": 168,
    "attention-80": 184,
    "unpack": 64,
}
"""Of a thread. 64 leave room for 1024 threads to a multiprocessor, 104 for 512, 168 for three of attention's blocks."""
MOST_STATIC_BYTES = {"suppression": 1024}
"""Shared memory that a source declares; attention's is the launch's (`shared_bytes`)."""
QUICK = [
    source for source in SOURCES if source.label not in ("attention-16", "attention-32", "attention-48", "attention-80")
]


def used(log: str) -> dict[str, tuple[int, int, int]]:
    """Of each kernel in the assembler's log: registers, bytes spilled or on the stack, and static shared memory."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)]
        (registers,) = re.findall(r"Used (\d+) registers", part)
        shared = re.findall(r"(\d+) bytes smem", part)
        assert len(numbers) == 3
        found[part.partition("'")[0]] = int(registers), sum(numbers), int(shared[0]) if shared else 0
    return found


def check(source, target: str) -> None:
    compiled = compile_source(source, target, verbose=True)
    assert compiled.cubin.startswith(b"\x7fELF")
    kernels = used(compiled.log)
    assert set(kernels) == set(source.kernels)
    for registers, spilled, shared in kernels.values():
        assert registers <= MOST_REGISTERS[source.label]
        assert spilled == 0
        assert shared <= MOST_STATIC_BYTES.get(source.label, 0)


@needs_nvrtc
@pytest.mark.parametrize("target", ["sm75", "sm89"])
@pytest.mark.parametrize("source", QUICK, ids=lambda source: source.label)
def test_a_source_compiles_within_its_limits(source, target: str) -> None:
    """sm75 has no mma.m16n8k16 and is written for otherwise, all others alike."""
    check(source, target)


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.label)
def test_a_source_compiles_for_every_gpu_within_its_limits(source, target: str) -> None:
    check(source, target)


def test_every_source_is_listed() -> None:
    assert {source.file for source in SOURCES} == set(CSRC.glob("*.cu"))
    assert all(source.file.is_file() for source in SOURCES)


@pytest.mark.parametrize(
    ("module", "file", "names"),
    [
        (preprocess, "preprocess.cu", {"ROWS": "ROWS", "SHIFT": "SHIFT"}),
        (masks, "masks.cu", {"TAPS": "TAPS", "COLUMNS": "COLUMNS", "WARPS": "WARPS"}),
        (suppression, "suppression.cu", {"WORD": "WORD"}),
        (attention_half, "attention.cu", {"QUERIES": "QUERIES", "KEYS": "KEYS", "PAD": "PAD", "WARPS": "WARPS"}),
        (unpack, "unpack.cu", {"BITS": "BITS", "EACH": "EACH"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_launchers_have_the_sources_numbers(module, file: str, names: dict[str, str]) -> None:
    text = (CSRC / file).read_text()
    for ours, theirs in names.items():
        (number,) = re.findall(rf"constexpr int {theirs} = (\d+);", text)
        assert getattr(module, ours) == int(number)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for what is kept."""
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cuda"


@needs_nvrtc
def test_machine_code_is_compiled_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cubin_of(unpack.SOURCE, "sm86")
    (kept,) = cache.iterdir()
    assert kept.name == file_name(unpack.SOURCE, "sm86", compiler_version())
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_source", lambda *args: pytest.fail("compiled again"))
        assert cubin_of(unpack.SOURCE, "sm86") == first
    # another target, and another compiler, are other files
    assert cubin_of(unpack.SOURCE, "sm80") != first
    monkeypatch.setattr(compiler, "compiler_version", lambda: "nvrtc99.0")
    cubin_of(unpack.SOURCE, "sm86")
    assert len(list(cache.iterdir())) == 3


@needs_nvrtc
def test_an_empty_log_is_not_written_over_pythons_own_bytes() -> None:
    """All single bytes of a value are one object: written over, 32 became 0 in every pickle."""
    compile_source(unpack.SOURCE, "sm86")
    assert [bytes([value])[0] for value in range(256)] == list(range(256))


@needs_nvrtc
def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path / "file"))
    assert cubin_of(unpack.SOURCE, "sm86").startswith(b"\x7fELF")


def test_a_changed_source_macro_or_header_is_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in CSRC.glob("*.cu*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("sam_edge.kernels.gpu.CSRC", tmp_path)
    monkeypatch.setattr(compiler, "CSRC", tmp_path)
    names = [file_name(source, "sm89", "nvrtc13.0") for source in SOURCES]
    (tmp_path / "masks.cu").write_text("// changed")
    names.append(file_name(masks.SOURCE, "sm89", "nvrtc13.0"))
    (tmp_path / "device.cuh").write_text("// changed")
    names += [file_name(source, "sm89", "nvrtc13.0") for source in SOURCES]
    assert len(set(names)) == len(names)


@needs_nvrtc
def test_ahead_of_time_is_what_a_device_without_a_compiler_takes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "SOURCES", (unpack.SOURCE, suppression.SOURCE))
    main(["--target", "sm87", "--target", "sm89", "--out", str(cache)])
    assert len(list(cache.iterdir())) == 4
    monkeypatch.setattr(compiler, "_nvrtc", lambda: None)
    monkeypatch.setattr(compiler, "_pycuda_compiler", lambda: None)
    assert compiler_version() == ""
    assert cubin_of(unpack.SOURCE, "sm87").startswith(b"\x7fELF")
    with pytest.raises(BackendUnavailableError, match="no compiler for CUDA kernels here: pip install") as refused:
        cubin_of(unpack.SOURCE, "sm90")
    assert "\n" not in str(refused.value)


@needs_nvrtc
def test_what_the_compiler_does_not_know_is_one_line() -> None:
    with pytest.raises(SamEdgeError, match=r"unpack\.cu does not compile for sm12345: ") as refused:
        compile_source(unpack.SOURCE, "sm12345")
    assert "\n" not in str(refused.value)


def test_pycudas_compiler_is_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    class Compiler:
        @staticmethod
        def compile(source: str, **options: object) -> bytes:
            heard.append((source, options))
            if options["arch"] == "sm_1":
                raise RuntimeError("nvcc\nfails")
            return b"\x7fELF"

    monkeypatch.setattr(compiler, "_nvrtc", lambda: None)
    monkeypatch.setattr(compiler, "_pycuda_compiler", lambda: Compiler)
    assert compiler_version() == "nvcc"
    source = attention_half.SOURCES[64]
    assert compile_source(source, "sm87").cubin == b"\x7fELF"
    (text, options), *_ = heard
    assert text == source.file.read_text()
    assert options["arch"] == "sm_87"
    assert options["no_extern_c"]
    assert options["include_dirs"] == [str(CSRC)]
    assert "--define-macro=HEAD_WIDTH=64" in options["options"]
    with pytest.raises(SamEdgeError, match=r"attention\.cu does not compile for sm1: nvcc fails"):
        compile_source(source, "sm1")
