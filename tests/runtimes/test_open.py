"""sam_edge.runtimes.open: which runtime opens what, where, and what is refused before anything is opened."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sam_edge import halves
from sam_edge.errors import BackendUnavailableError, ExportError, ModelError
from sam_edge.runtimes import open as opening
from sam_edge.runtimes.cuda import CudaDevice, cuda_devices
from sam_edge.runtimes.open import RUNTIMES, open_runtime
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.config import ModelConfig

without_cuda = pytest.mark.skipif(bool(cuda_devices()), reason="there is a CUDA device")


@pytest.fixture
def exported(tmp_path: Path, tiny_config: ModelConfig) -> Path:
    """An exported folder without graphs: enough for what is decided before one is opened."""
    folder = tmp_path / "exported"
    folder.mkdir()
    values = {"precision": "fp32", "dialect": None, "config": json.loads(tiny_config.to_json()), "graphs": {}}
    (folder / "model.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Runtimes that are not opened, only asked for: their class, and what they were given."""
    seen: list[tuple[Any, ...]] = []
    for name in ("OnnxRuntime", "OpenVinoRuntime", "TensorRtRuntime"):
        monkeypatch.setattr(opening, name, lambda *given, name=name: seen.append((name, *given)))
    return seen


def one_gpu() -> tuple[CudaDevice, ...]:
    return (CudaDevice("a GPU", "sm89"),)


def test_auto_is_onnx_runtime_for_graphs(exported: Path) -> None:
    assert open_runtime(exported).name == "onnxruntime"
    assert open_runtime(str(exported)).name == "onnxruntime"


@pytest.mark.parametrize("quantized", [True, False])
def test_for_many_pictures_integers_are_exported(
    quantized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a double of `open_runtime` is asked."""
    asked: list[str] = []
    monkeypatch.setattr(opening, "open_runtime", lambda spec, runtime, device: asked.append(runtime))
    monkeypatch.setattr(opening, "cuda_devices", list)
    monkeypatch.setattr(opening, "workshop_is_here", lambda: True)
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"layer": {}} if quantized else None}))
    for runtime, device in (("auto", "auto"), ("torch", "auto"), ("auto", "cuda")):
        opening.open_for_many(tmp_path, runtime, device)
    assert asked == ["onnxruntime" if quantized else "auto", "torch", "auto"]


@pytest.mark.parametrize("config", ["", "[]", '{"quantization": '])
def test_what_is_wrong_with_a_config_is_said_by_who_opens_it(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "open_runtime", lambda spec, runtime, device: asked.append(runtime))
        opening.open_for_many(tmp_path)
    assert asked == ["auto"]


def test_torch_refuses_graphs(exported: Path) -> None:
    with pytest.raises(ExportError, match="--runtime onnxruntime"):
        open_runtime(exported, "torch")


def test_all_runtimes_of_graphs_take_as_many_threads(
    exported: Path, opened: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A race between runtimes is between equals."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for runtime in ("onnxruntime", "openvino", "openvino-bf16"):
        open_runtime(exported, runtime, "cpu")
    assert opened == [
        ("OnnxRuntime", exported, "cpu", 3),
        ("OpenVinoRuntime", exported, "f32", 3),
        ("OpenVinoRuntime", exported, "bf16", 3),
    ]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "coreml", "openvino"])
def test_a_provider_is_chosen_by_its_name(provider: str, exported: Path, opened: list[tuple[Any, ...]]) -> None:
    open_runtime(exported, f"onnxruntime-{provider}")
    assert opened == [("OnnxRuntime", exported, provider, cpu_threads())]


@pytest.mark.parametrize("there", [True, False], ids=["has CUDA", "has no CUDA"])
def test_auto_takes_the_gpu_where_onnx_runtime_can(
    there: bool, exported: Path, opened: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = ["CPUExecutionProvider", *(["CUDAExecutionProvider"] if there else [])]
    library = opening.load_onnxruntime()
    monkeypatch.setattr(library, "get_available_providers", lambda: providers)
    monkeypatch.setattr(opening, "cuda_devices", one_gpu)
    for device in ("auto", "cuda", "cpu"):
        open_runtime(exported, "onnxruntime", device)
    # that ONNX Runtime lacks what was asked for is its own runtime's to say
    assert [given[2] for given in opened] == ["cuda" if there else "cpu", "cuda", "cpu"]


def test_an_unknown_runtime_or_device_lists_the_allowed_ones(exported: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=", ".join(RUNTIMES)):
        open_runtime(exported, "tflite")
    with pytest.raises(BackendUnavailableError, match="auto, cpu, cuda"):
        open_runtime(exported, device="tpu")


@pytest.mark.parametrize("runtime", ["openvino", "openvino-bf16", "onnxruntime-openvino", "onnxruntime-coreml"])
def test_what_does_not_run_on_cuda_is_not_asked_to(runtime: str, exported: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=f"{runtime} does not run on CUDA: use --device cpu"):
        open_runtime(exported, runtime, "cuda")


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "openvino"])
@pytest.mark.parametrize("torch_is_here", [True, False])
def test_an_unknown_model_is_told_as_one(
    runtime: str, torch_is_here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch_is_here:
        pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(opening, "workshop_is_here", lambda: torch_is_here)
    with pytest.raises(ModelError, match="neither a known model nor a file"):
        open_runtime(str(tmp_path / "nothing"), runtime)


@without_cuda
def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu(exported: Path, opened: list[tuple[Any, ...]]) -> None:
    open_runtime(exported, device="auto")
    assert opened[0][2] == "cpu"
    with pytest.raises(BackendUnavailableError, match="--device cpu"):
        open_runtime(exported, device="cuda")
    assert len(opened) == 1


@without_cuda
def test_without_a_gpu_tensorrt_is_refused(exported: Path) -> None:
    for device in ("auto", "cuda"):
        with pytest.raises(BackendUnavailableError, match=r"CUDA device.*--runtime onnxruntime"):
            open_runtime(exported, "tensorrt", device)
    with pytest.raises(BackendUnavailableError, match="--device cuda"):
        open_runtime(exported, "tensorrt", "cpu")


def test_without_torch_a_known_name_is_the_graphs_that_ship(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(opening, "workshop_is_here", lambda: False)
    monkeypatch.setattr("sam_edge.runtimes.folder.shipped_folder", lambda name: asked.append(name) or exported)
    assert open_runtime("nano").folder.path == exported  # type: ignore[attr-defined]
    assert open_runtime("nano", "onnxruntime", "cpu").folder.path == exported  # type: ignore[attr-defined]
    assert asked == ["nano-onnx"] * 2


def test_without_torch_weights_say_what_to_install(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(module: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(opening, "workshop_is_here", lambda: False)
    monkeypatch.setattr(halves, "importlib", SimpleNamespace(import_module=absent))
    monkeypatch.setattr("sam_edge.runtimes.folder.shipped_folder", lambda name: tmp_path / "nothing")
    (tmp_path / "weights.pth").write_bytes(b"")
    for spec in ("nano", tmp_path / "weights.pth"):
        for runtime in ("auto", "torch", "onnxruntime"):
            with pytest.raises(BackendUnavailableError, match=r"torch: pip install 'sam-edge\[workshop\]'") as refused:
                open_runtime(spec, runtime)
            assert "\n" not in str(refused.value)
