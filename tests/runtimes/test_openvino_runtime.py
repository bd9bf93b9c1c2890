"""OpenVINO reads the files that ONNX Runtime reads, and agrees with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export.parity import answers, compare
from sam_edge.runtimes.openvino_runtime import OpenVinoRuntime, core
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.runtime import Runtime
from tests.exported import Exported


def _images() -> list[np.ndarray]:
    scenes = SyntheticScenes(2)
    return [scenes[0].image, scenes[1].image]


@pytest.fixture
def openvino() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.mark.usefixtures("openvino")
def test_float_results_are_those_of_onnx_runtime(fp32: Exported) -> None:
    runtime = OpenVinoRuntime(fp32.path, threads=1)
    assert isinstance(runtime, Runtime)
    assert runtime.name == "openvino"
    parity = compare(answers(fp32.runtime, _images()), answers(runtime, _images(), split=True))
    assert parity.mask_iou > 0.9999
    assert parity.split_mask_iou is not None
    assert parity.split_mask_iou > 0.9999
    assert parity.largest_split_error is not None
    assert parity.largest_split_error < 1e-4
    assert parity.largest_embedding_error < 1e-5
    assert parity.largest_logit_error < 1e-4


@pytest.mark.usefixtures("openvino")
def test_int8_graphs_of_the_cpu_dialect_run_and_agree(int8: Exported) -> None:
    parity = compare(answers(int8.runtime, _images()), answers(OpenVinoRuntime(int8.path, threads=1), _images()))
    assert parity.mask_iou > 0.95


@pytest.mark.usefixtures("openvino")
def test_integer_results_are_those_of_onnx_runtime_on_any_cpu(int8) -> None:
    side = int8.model.config.image_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    wanted = int8.runtime.encode(pixels)
    found = OpenVinoRuntime(int8.path, threads=1).encode(pixels)
    # values rounded otherwise move all that follow, by a step
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


@pytest.mark.usefixtures("openvino")
def test_attention_in_integers_is_refused_with_the_remedy(int8, tmp_path: Path) -> None:
    folder = shutil.copytree(int8.path, tmp_path / "products")
    manifest = json.loads((folder / "model.json").read_text())
    one = manifest["integer_form"]["float_products"].pop(0)
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=rf"{one}.*export again with --products none"):
        OpenVinoRuntime(folder)


@pytest.mark.usefixtures("openvino")
def test_a_later_call_leaves_earlier_results_alone(fp32: Exported) -> None:
    runtime = OpenVinoRuntime(fp32.path, threads=1)
    first = runtime.encode(np.zeros((1, 3, 64, 64), np.float32))
    kept = first.copy()
    runtime.encode(np.ones((1, 3, 64, 64), np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.usefixtures("openvino")
def test_bfloat16_runs_where_the_processor_has_it_and_is_refused_elsewhere(fp32: Exported) -> None:
    able = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if not able:
        with pytest.raises(BackendUnavailableError, match="does not compute in bf16"):
            OpenVinoRuntime(fp32.path, "bf16")
        return
    runtime = OpenVinoRuntime(fp32.path, "bf16", threads=1)
    assert runtime.name == "openvino-bf16"
    parity = compare(answers(fp32.runtime, _images()), answers(runtime, _images()))
    assert 1e-5 < parity.largest_embedding_error < 0.05


@pytest.mark.usefixtures("openvino")
def test_a_graph_that_openvino_refuses_is_one_line(
    fp32: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "encoder.onnx").write_text("no graph")
    monkeypatch.setattr("sam_edge.runtimes.folder.ExportedFolder.graph_file", lambda *_: tmp_path / "encoder.onnx")
    runtime = OpenVinoRuntime(fp32.path, kernels=False)
    with pytest.raises(ExportError, match=r"OpenVINO refuses encoder\.onnx") as refused:
        runtime.encode(np.zeros((1, 3, 64, 64), np.float32))
    assert "\n" not in str(refused.value)


def test_an_absent_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'sam-edge\[openvino\]'"):
        OpenVinoRuntime(tmp_path)


@pytest.mark.usefixtures("openvino")
def test_a_signal_is_handled_after_runtimes_came_and_went(fp32: Exported) -> None:
    script = """
import faulthandler, gc, signal, sys
import numpy as np
from sam_edge.runtimes.openvino_runtime import OpenVinoRuntime, core

faulthandler.enable()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
def opened(threads):
    runtime = OpenVinoRuntime(sys.argv[1], threads=threads)
    runtime.encode(np.zeros((1, 3, 64, 64), np.float32))
    return runtime
first, second = opened(1), opened(2)
del first
gc.collect()
third = opened(1)
del second
gc.collect()
del third
gc.collect()
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script, str(fp32.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
