"""sam_edge.runtimes.tensorrt_runtime: calls are cut to what engines take, and agree with ONNX Runtime's.

Without a GPU on doubles of the library and of pycuda; where there is a GPU, on it.
"""

import json
import shutil
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sam_edge.errors import BackendUnavailableError, ExportError, PromptError
from sam_edge.export.parity import answers, compare
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, profile_shapes
from sam_edge.files import sha256_of
from sam_edge.models.sam import EdgeSam
from sam_edge.runtimes import tensorrt_runtime
from sam_edge.runtimes.cuda import cuda_devices, machine_target
from sam_edge.runtimes.engines import Engine, read_engines, write_engines
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.tensorrt_runtime import TensorRtRuntime, check_points, load_pycuda, slices
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Runtime
from tests.runtimes import trt_double

BATCH, SETS, POINTS = 2, 3, 4
"""What the double's engines take at most."""
Calls = list[dict[str, tuple[int, ...]]]


def with_engines(path: Path, out: Path) -> Path:
    """A copy of an exported folder with the double's engines for an sm89."""
    shutil.copytree(path, out)
    folder = ExportedFolder.read(out)
    engines = []
    for name, graph in folder.graphs.items():
        options = TrtOptions(max_batch=BATCH, max_sets=SETS, max_points=POINTS)
        shapes = profile_shapes(graph["inputs"], options, folder.config.decoder.heads)
        file = out / f"{name}.sm89.engine"
        file.write_bytes(trt_double.engine_bytes(folder.graph_file(name).read_bytes(), shapes))
        sums = graph["sha256"], sha256_of(file)
        size = file.stat().st_size
        engines.append(Engine(file.name, name, "sm89", "rtx", "0.double", folder.precision, shapes, *sums, 1.0, size))
    write_engines(out, engines)
    return out


@pytest.fixture(scope="module")
def folder(fp32, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder with engines for the double."""
    return with_engines(fp32.path, tmp_path_factory.mktemp("engines") / "fp32")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A machine with an sm89 and the double's libraries; what their engines are called with."""
    heard: Calls = []
    monkeypatch.setattr(tensorrt_runtime, "machine_target", lambda: "sm89")
    monkeypatch.setattr(tensorrt_runtime, "load_library", lambda flavor: trt_double.library(heard))
    monkeypatch.setattr(tensorrt_runtime, "logger", lambda flavor: SimpleNamespace(told=lambda: "as the double says"))
    monkeypatch.setattr(tensorrt_runtime, "load_pycuda", trt_double.pycuda)
    return heard


@pytest.fixture
def runtime(folder: Path, calls: Calls) -> TensorRtRuntime:
    """Engines on the double."""
    return TensorRtRuntime(folder)


def some_prompts(config: ModelConfig, batch: int, sets: int, points: int = 2, with_masks: bool = False) -> Prompts:
    """Random points."""
    rng = np.random.default_rng(sets)
    coords = rng.uniform(0, config.image_size, (batch, sets, points, 2)).astype(np.float32)
    masks = rng.normal(size=(batch, sets, 1, config.mask_size, config.mask_size)).astype(np.float32)
    return Prompts(coords, rng.integers(-1, 4, (batch, sets, points)), masks if with_masks else None)


def some_pixels(config: ModelConfig, batch: int) -> np.ndarray:
    """Noise in place of pictures."""
    shape = (batch, 3, config.image_size, config.image_size)
    return np.random.default_rng(batch).normal(size=shape).astype(np.float32)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    """To the rounding of calls of other sizes."""
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_it_is_a_runtime_and_its_sets_are_the_engines(runtime: TensorRtRuntime, fp32) -> None:
    assert isinstance(runtime, Runtime)
    assert runtime.name == "tensorrt"
    assert runtime.sets_at_once == SETS
    assert runtime.cost == fp32.runtime.cost


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_are_encoded_as_many_at_a_time_as_the_engine_takes(
    batch: int, runtime: TensorRtRuntime, calls: Calls, fp32
) -> None:
    pixels = some_pixels(fp32.model.config, batch)
    embeddings = runtime.encode(pixels)
    assert trt_double.sizes(calls, "pixels", 0) == {1: [1], 2: [2], 5: [2, 2, 1]}[batch]
    assert all(isinstance(part, trt_double.Array) for part in embeddings)
    assert_close(runtime.host(embeddings), fp32.runtime.encode(pixels))


@pytest.mark.parametrize(("batch", "sets"), [(1, 1), (2, 3), (5, 7)])
@pytest.mark.parametrize("with_masks", [False, True])
def test_masks_are_onnx_runtimes_by_calls_that_the_engine_takes(
    batch: int, sets: int, with_masks: bool, runtime: TensorRtRuntime, calls: Calls, fp32
) -> None:
    pixels = some_pixels(fp32.model.config, batch)
    prompts = some_prompts(fp32.model.config, batch, sets, POINTS, with_masks)
    embeddings = runtime.encode(pixels)
    wanted = fp32.runtime.decode(runtime.host(embeddings), prompts)
    for found, answer in zip(runtime.decode(embeddings, prompts), wanted, strict=True):
        assert_close(found, answer)
    asked = [call["point_labels"][:2] for call in calls if "mask_input" in call]
    assert sum(images * several for images, several in asked) == batch * sets
    assert all(images <= BATCH and several <= SETS for images, several in asked)


def test_parts_are_onnx_runtimes_by_calls_that_the_engines_take(runtime: TensorRtRuntime, calls: Calls, fp32) -> None:
    sets, config = 8, fp32.model.config
    prompts = some_prompts(config, 1, sets)
    embeddings = runtime.encode(some_pixels(config, 1))
    state, wanted = runtime.prepare(embeddings), fp32.runtime.prepare(runtime.host(embeddings))
    assert state.keys() == wanted.keys()
    prediction, answer = runtime.predict(state, prompts), fp32.runtime.predict(wanted, prompts)
    assert_close(prediction.iou, answer.iou)
    assert [call["point_labels"][1] for call in calls if "point_labels" in call] == [3, 3, 2]
    # all in reverse; some, out of order and with repetitions; one; none
    for chosen in (np.arange(sets)[::-1], np.array([7, 0, 7, 3, 0, 7]), np.array([5]), np.zeros(0, np.int64)):
        calls.clear()
        masks = np.arange(len(chosen)) % 4
        found = runtime.upscale(prediction, chosen, masks)
        assert found.shape == (len(chosen), config.mask_size, config.mask_size)
        assert_close(found, fp32.runtime.upscale(answer, chosen, masks))
        # only the calls of those sets, and each wanted mask once
        assert len(calls) == len(set(chosen // SETS))
        assert sum(trt_double.sizes(calls, "places", 0)) == len(chosen)


@pytest.mark.parametrize("sets", [3, 8])
def test_all_masks_of_all_sets_fit_into_the_engines(sets: int, runtime: TensorRtRuntime, fp32) -> None:
    prompts, embeddings = some_prompts(fp32.model.config, 1, sets), runtime.encode(some_pixels(fp32.model.config, 1))
    prediction = runtime.predict(runtime.prepare(embeddings), prompts)
    found = runtime.upscale(prediction, np.arange(sets).repeat(4), np.tile(np.arange(4), sets))
    wanted, _ = fp32.runtime.decode(runtime.host(embeddings), prompts)
    # the parts' own way, which rounds otherwise
    np.testing.assert_allclose(found.reshape(wanted[0].shape), wanted[0], rtol=1e-4, atol=1e-4)


def test_masks_wanted_again_and_again_are_cut_to_what_the_engine_takes(
    runtime: TensorRtRuntime, calls: Calls, fp32
) -> None:
    prediction = runtime.predict(
        runtime.prepare(runtime.encode(some_pixels(fp32.model.config, 1))), some_prompts(fp32.model.config, 1, SETS)
    )
    calls.clear()
    again = np.arange(4 * SETS + 5) % SETS
    found = runtime.upscale(prediction, again, np.zeros(len(again), np.int64))
    assert trt_double.sizes(calls, "places", 0) == [4 * SETS, 5]
    np.testing.assert_array_equal(found, found[again])


def test_engines_of_another_version_are_not_even_loaded(folder: Path, calls: Calls, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    write_engines(other, [replace(engine, version="0.older") for engine in read_engines(other)])
    with pytest.raises(BackendUnavailableError, match=r"built by tensorrt_rtx 0\.older and 0\.double is here: build"):
        TensorRtRuntime(other)


def test_mask_prompts_go_through_the_whole_decoder(runtime: TensorRtRuntime, calls: Calls, fp32) -> None:
    prompts = some_prompts(fp32.model.config, 1, 5, with_masks=True)
    embeddings = runtime.encode(some_pixels(fp32.model.config, 1))
    prediction = runtime.predict(runtime.prepare(embeddings), prompts)
    wanted, iou = fp32.runtime.decode(runtime.host(embeddings), prompts)
    assert_close(prediction.iou, iou[0])
    sets, masks = np.array([4, 0, 4]), np.array([1, 2, 3])
    assert_close(runtime.upscale(prediction, sets, masks), wanted[0, sets, masks])
    assert sum(trt_double.sizes(calls, "mask_input", 1)) == 5


def test_nobody_asked_is_an_answer_too(runtime: TensorRtRuntime, fp32) -> None:
    state = runtime.prepare(runtime.encode(some_pixels(fp32.model.config, 1)))
    nobody = Prompts(np.zeros((1, 0, 2, 2), np.float32), np.zeros((1, 0, 2), np.int64))
    assert runtime.predict(state, nobody).iou.shape == (0, 4)


def test_an_earlier_prediction_outlives_later_ones(runtime: TensorRtRuntime, fp32) -> None:
    sets, masks = np.array([2, 0]), np.array([1, 3])
    first, second = some_pixels(fp32.model.config, 2)[:, None]
    prompts = some_prompts(fp32.model.config, 1, 4)
    prediction = runtime.predict(runtime.prepare(runtime.encode(first)), prompts)
    before = runtime.upscale(prediction, sets, masks)
    later = runtime.upscale(runtime.predict(runtime.prepare(runtime.encode(second)), prompts), sets, masks)
    assert np.abs(later - before).max() > 0
    np.testing.assert_array_equal(runtime.upscale(prediction, sets, masks), before)


def test_more_points_than_the_engine_takes_are_refused(runtime: TensorRtRuntime, calls: Calls, fp32) -> None:
    embeddings = runtime.encode(some_pixels(fp32.model.config, 1))
    state, many = runtime.prepare(embeddings), some_prompts(fp32.model.config, 1, 2, POINTS + 1)
    calls.clear()
    for ask in (lambda: runtime.decode(embeddings, many), lambda: runtime.predict(state, many)):
        with pytest.raises(PromptError, match=r"5 points is more than this engine's 4: .*--max-points"):
            ask()
    assert calls == []
    check_points(some_prompts(fp32.model.config, 1, 2, POINTS), read_engines(runtime.folder.path)[1])


def test_a_shape_that_the_engine_does_not_take_is_one_line(runtime: TensorRtRuntime, fp32) -> None:
    with pytest.raises(ExportError, match=r"takes pixels from .* got \[1, 3, 32, 32\]: build it again") as refused:
        runtime.encode(np.zeros((1, 3, 32, 32), np.float32))
    assert "\n" not in str(refused.value)


def test_an_engine_of_another_version_is_refused(folder: Path, calls: Calls, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    file = other / "predict.sm89.engine"
    file.write_bytes(trt_double.BROKEN)
    engines = read_engines(other)
    changed = [replace(e, sha256=sha256_of(file)) if e.graph == "predict" else e for e in engines]
    write_engines(other, changed)
    with pytest.raises(ExportError, match=r"predict\.sm89\.engine, built by tensorrt_rtx 0.*0\.double.*build it again"):
        TensorRtRuntime(other)


def test_a_folder_without_the_split_decoder_still_decodes(fp32, folder: Path, calls: Calls, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    values = json.loads((old / "model.json").read_text())
    values["graphs"] = {name: values["graphs"][name] for name in ("encoder", "decoder")}
    (old / "model.json").write_text(json.dumps(values))
    write_engines(old, [engine for engine in read_engines(old) if engine.graph in values["graphs"]])
    runtime, prompts = TensorRtRuntime(old), some_prompts(fp32.model.config, 1, 7)
    embeddings = runtime.encode(some_pixels(fp32.model.config, 1))
    wanted, _ = fp32.runtime.decode(runtime.host(embeddings), prompts)
    assert_close(runtime.decode(embeddings, prompts)[0], wanted)
    with pytest.raises(ExportError, match=r"has no prepare\.onnx.*export again"):
        runtime.prepare(embeddings)


@pytest.mark.parametrize(("count", "most"), [(0, 3), (1, 3), (3, 3), (7, 3), (7, 1), (2, 9)])
def test_slices_cover_everything_once_and_none_is_larger(count: int, most: int) -> None:
    things = list(range(count))
    parts = [things[some] for some in slices(count, most)]
    assert list(chain(*parts)) == things
    assert all(0 < len(part) <= most for part in parts)


@pytest.mark.skipif(bool(cuda_devices()), reason="there is a CUDA device")
def test_without_a_gpu_the_error_names_another_runtime(folder: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="--runtime onnxruntime") as refused:
        TensorRtRuntime(folder)
    assert "\n" not in str(refused.value)


def test_without_pycuda_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(BackendUnavailableError, match=r"pycuda: pip install 'sam-edge\[tensorrt\]'"):
        load_pycuda()


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_engines_agree_with_onnx_runtime(tiny_sam: EdgeSam, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    scenes = SyntheticScenes(2)
    images = [scenes[0].image, scenes[1].image]
    export_onnx(tiny_sam, tmp_path / "graphs", images, OnnxOptions())
    # eight sets per call, so that the thirteen of the comparison are cut
    options = TrtOptions(targets=(machine_target(),), max_sets=8, precision="fp32")
    try:
        build_engines(ExportedFolder.read(tmp_path / "graphs"), tmp_path / "engines", options)
    except ExportError as error:
        pytest.skip(str(error))
    runtime = TensorRtRuntime(tmp_path / "engines")
    parity = compare(answers(OnnxRuntime(tmp_path / "graphs"), images), answers(runtime, images, split=True))
    runtime.synchronise()
    assert parity.mask_iou > 0.98
    assert parity.split_mask_iou is not None
    assert parity.split_mask_iou > 0.98
    (embeddings,) = runtime.encode(some_pixels(runtime.config, 1))
    assert not isinstance(embeddings, np.ndarray)
