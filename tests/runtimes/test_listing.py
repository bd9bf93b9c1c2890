"""sam-edge runtimes: what is here, and what brings the others."""

import json

import pytest

from sam_edge.runtimes import listing, onnx_runtime, processor
from sam_edge.runtimes.cuda import CudaDevice


def test_every_library_is_listed_with_its_version_or_its_remedy() -> None:
    rows = {row.name: row for row in listing.listed()}
    assert set(rows) == {"onnxruntime", "openvino", "tensorrt-rtx", "tensorrt", "torch"}
    for row in rows.values():
        assert bool(row.version) or row.remedy.startswith("pip install 'sam-edge[")
        assert row.computes or not row.here
    assert rows["onnxruntime"].here
    assert "fp32" in rows["onnxruntime"].computes
    assert "cpu" in rows["onnxruntime"].computes


@pytest.mark.parametrize(("clips", "fast", "said"), [(True, (), "without signs"), (False, ("VNNI",), "int8 by VNNI")])
def test_how_integers_are_computed_is_said(
    clips: bool, fast: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "clips_products", lambda: clips)
    monkeypatch.setattr(listing, "features", lambda: fast)
    assert said in next(row.computes for row in listing.listed() if row.name == "onnxruntime")


def test_two_distributions_of_onnx_runtime_are_a_clash_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "version", lambda name: "1.0")
    said = onnx_runtime.clash()
    assert said is not None
    assert "onnxruntime 1.0 and onnxruntime-gpu 1.0" in said
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu" in said
    monkeypatch.undo()
    assert onnx_runtime.clash() is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8\n", ("AVX2", "AVX-512", "VNNI", "AMX int8")),
        ("Features\t: fp asimd asimddp i8mm\n", ("NEON", "dot products", "int8 matrices")),
        ("", ()),
    ],
)
def test_features_are_read_off_the_kernel_s_list(
    text: str, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(processor.Path, "read_text", lambda self: text)
    processor.features.cache_clear()
    assert processor.features() == wanted
    processor.features.cache_clear()


def test_the_command_prints_one_object(sam_edge) -> None:
    code, out, _ = sam_edge("runtimes", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)["runtimes"]} >= {"onnxruntime", "torch"}
    code, out, _ = sam_edge("runtimes")
    assert code == 0
    assert "onnxruntime" in out


@pytest.mark.parametrize("compiler", ["nvrtc13.0", ""])
def test_what_needs_a_gpu_says_that_it_was_tested_without(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "version", lambda distribution: "1.0")
    monkeypatch.setattr(listing, "load_library", lambda flavor: None)
    monkeypatch.setattr(listing, "cuda_devices", lambda: (CudaDevice("a GPU", "sm89"),))
    monkeypatch.setattr(listing, "compiler_version", lambda: compiler)
    (said,) = (row.computes for row in listing.listed() if row.name == "tensorrt-rtx")
    assert said.startswith("on a GPU (sm89)")
    assert listing.UNTRIED in said
    assert (compiler or "without a compiler for CUDA kernels") in said
