"""sam_edge.runtimes.tensorrt_runtime: calls are cut to what engines take, and agree with ONNX Runtime's.

Without a GPU on doubles of the library and of pycuda; where there is a GPU, on it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sam_edge.errors import BackendUnavailableError, ExportError, PromptError
from sam_edge.export.parity import answers, compare
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, profile_shapes
from sam_edge.files import sha256_of
from sam_edge.kernels import launcher
from sam_edge.kernels.driver import BindingsDriver, PycudaDriver
from sam_edge.kernels.gpu import DeviceArray
from sam_edge.kernels.launcher import Gpu
from sam_edge.models.sam import EdgeSam
from sam_edge.runtimes import acceleration, tensorrt_runtime
from sam_edge.runtimes.cuda import cuda_devices, machine_target
from sam_edge.runtimes.engines import Engine, read_engines, write_engines
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.tensorrt_runtime import Call, LoadedEngine, Recording, TensorRtRuntime, check_points, slices
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Runtime
from tests.cuda_double import CUBIN, GARBAGE, Bindings, Fault, Machine, pycuda
from tests.kernels.emulated import COMPILER
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


@pytest.fixture(params=["rtx", "standard", "standard by pycuda"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device with an sm89 and the double's library, whichever engines ask for."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    machine, heard = Machine(), []
    flavor, _, package = request.param.partition(" by ")
    double = trt_double.library(machine, heard, flavor)
    double.machine, double.calls, double.flavor = machine, heard, flavor

    def gpu() -> Gpu:
        double.gpu = Gpu(PycudaDriver(pycuda(machine)) if package else BindingsDriver(Bindings(machine)))
        return double.gpu

    monkeypatch.setattr(launcher, "cubin_of", lambda source, target: CUBIN + source.label.encode())
    monkeypatch.setattr(acceleration, "cubin_of", lambda source, target: b"")
    monkeypatch.setattr(tensorrt_runtime, "machine_target", lambda: "sm89")
    monkeypatch.setattr(tensorrt_runtime, "load_library", lambda asked: double)
    monkeypatch.setattr(tensorrt_runtime, "logger", lambda asked: SimpleNamespace(told=lambda: "as the double says"))
    monkeypatch.setattr(tensorrt_runtime, "Gpu", gpu)
    return double


@pytest.fixture
def calls(library: Any) -> Calls:
    """What the double's engines have run with."""
    heard: Calls = library.calls
    return heard


@pytest.fixture
def runtime(folder: Path, library: Any, tmp_path: Path) -> TensorRtRuntime:
    """Engines on the double."""
    if library.flavor == "rtx":
        return TensorRtRuntime(folder)
    other = Path(shutil.copytree(folder, tmp_path / "standard"))
    write_engines(other, [replace(engine, flavor="standard") for engine in read_engines(folder)])
    return TensorRtRuntime(other)


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
    assert calls == []
    runtime.synchronise()
    assert trt_double.sizes(calls, "pixels", 0) == {1: [1], 2: [2], 5: [2, 2, 1]}[batch]
    assert all(isinstance(part, DeviceArray) for part in embeddings)
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
    runtime.synchronise()
    calls.clear()
    for ask in (lambda: runtime.decode(embeddings, many), lambda: runtime.predict(state, many)):
        with pytest.raises(PromptError, match=r"5 points is more than this engine's 4: .*--max-points"):
            ask()
    runtime.synchronise()
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


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_engines_agree_with_onnx_runtime(tiny_sam: EdgeSam, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
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


# one stream, recorded calls


def test_nothing_waits_but_who_wants_an_answer(runtime: TensorRtRuntime, library: Any, fp32) -> None:
    state = runtime.prepare(runtime.encode(some_pixels(fp32.model.config, 1)))
    assert isinstance(state["embeddings"], tuple)
    assert library.machine.log == []
    runtime.predict(state, some_prompts(fp32.model.config, 1, 2))
    assert library.calls != []


def test_a_call_whose_shapes_came_before_is_recorded_and_replayed(runtime: TensorRtRuntime, library: Any, fp32) -> None:
    config = fp32.model.config
    pictures = [np.random.default_rng(seed).normal(size=(1, 3, 64, 64)).astype(np.float32) for seed in range(4)]
    (encoder,) = (loaded for name, loaded in runtime._loaded.items() if name == "encoder")
    found = []
    for picture in pictures:
        found.append(runtime.encode(picture))
    # kept apart from what later replays of the same graph give
    for picture, embeddings in zip(pictures, found, strict=True):
        assert_close(runtime.host(embeddings), fp32.runtime.encode(picture))
    assert trt_double.sizes(library.calls, "pixels", 0) == [1] * 4
    assert len(encoder._recorded) == int(library.flavor == "standard" and runtime._gpu.driver.captures)
    assert config.image_size == 64


def test_few_shapes_are_recorded_and_all_are_answered(runtime: TensorRtRuntime, fp32) -> None:
    """Each recording has the engine's working memory to itself."""
    config = fp32.model.config
    (embeddings,) = ([runtime.encode(some_pixels(config, 1))],)
    state = runtime.prepare(embeddings[0])
    wanted = fp32.runtime.prepare(runtime.host(embeddings[0]))
    for _ in range(3):
        for points in (1, 2, 3, 4):
            prompts = some_prompts(config, 1, 2, points)
            assert_close(runtime.predict(state, prompts).iou, fp32.runtime.predict(wanted, prompts).iou)
    recorded = len(runtime._loaded["predict"]._recorded)
    assert recorded == (tensorrt_runtime.RECORDED if runtime._loaded["predict"]._records else 0)


def test_an_engine_that_cannot_be_recorded_runs_unrecorded(runtime: TensorRtRuntime, library: Any, fp32) -> None:
    for engine in library.engines:
        engine.refuses_to_record = True
    records = library.flavor == "standard" and runtime._gpu.driver.captures
    assert runtime._loaded["encoder"]._records == records
    for _ in range(3):
        embeddings = runtime.encode(some_pixels(fp32.model.config, 1))
        assert_close(runtime.host(embeddings), fp32.runtime.encode(some_pixels(fp32.model.config, 1)))
    assert not runtime._loaded["encoder"]._records
    assert not runtime._loaded["encoder"]._recorded


def test_tensorrt_rtx_records_by_itself(runtime: TensorRtRuntime, library: Any) -> None:
    strategies = {strategy for engine in library.engines for strategy in engine.strategies}
    assert strategies == ({"whole"} if library.flavor == "rtx" else {None})


def test_everything_mode_brings_bits_back(runtime: TensorRtRuntime, library: Any, fp32, photo: np.ndarray) -> None:
    given = {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "points_per_side": 3}
    found = EverythingGenerator(runtime, **given).generate(photo)
    wanted = EverythingGenerator(fp32.runtime, **given).generate(photo)
    assert [one["bbox"] for one in found] == [one["bbox"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one["segmentation"] ^ other["segmentation"]).mean() < 1e-3
    assert {"preprocess_float", "measure_float", "box_conflicts", "keep_best"} <= set(library.machine.log)


def test_without_kernels_everything_mode_is_the_cpus(
    folder: Path, library: Any, fp32, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM_EDGE_KERNELS", "off")
    runtime = TensorRtRuntime(folder)
    assert runtime.acceleration is None
    given = {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "points_per_side": 2}
    found = EverythingGenerator(runtime, **given).generate(photo)
    assert [one["bbox"] for one in found] == [
        one["bbox"] for one in EverythingGenerator(fp32.runtime, **given).generate(photo)
    ]


def test_an_input_on_the_device_of_another_type_is_refused(runtime: TensorRtRuntime, fp32) -> None:
    halves = runtime._gpu.zeros((1, 3, 64, 64), np.float16)
    with pytest.raises(ExportError, match=r"encoder\.sm89\.engine takes pixels as float32, got float16"):
        runtime.encode(halves)


# what a runner can do wrong, done


def unrecorded(runtime: TensorRtRuntime) -> LoadedEngine:
    """The encoder, every call of which is bound anew."""
    loaded = runtime._loaded["encoder"]
    loaded._records = False
    return loaded


def misaligned(runtime: TensorRtRuntime) -> None:
    loaded = unrecorded(runtime)
    on_device = loaded.on_device

    def moved(name: str, value: Any) -> DeviceArray:
        found = on_device(name, value)
        return replace(found, address=found.address + 16)

    loaded.on_device = moved


def output_too_short(runtime: TensorRtRuntime) -> None:
    unrecorded(runtime)
    pool = runtime._gpu._pool
    runtime._gpu._pool = SimpleNamespace(lease=lambda size: pool.lease(256))


def input_of_another_shape(runtime: TensorRtRuntime) -> None:
    loaded = unrecorded(runtime)
    on_device = loaded.on_device
    loaded.on_device = lambda name, value: replace(on_device(name, value[:, :1]), shape=value.shape)


def engine_on_another_stream(runtime: TensorRtRuntime) -> None:
    other = runtime._gpu.driver.stream()
    runtime._gpu = SimpleNamespace(**{name: getattr(runtime._gpu, name) for name in ("put", "empty", "get", "driver")})
    runtime._gpu.stream = other
    unrecorded(runtime)._gpu = runtime._gpu


def memory_given_back(runtime: TensorRtRuntime) -> None:
    driver = runtime._gpu.driver
    allocate = driver.allocate
    runtime._gpu._pool._free.clear()
    driver.allocate = lambda size: (allocate(size)[0], None)


def destroyed_stream(runtime: TensorRtRuntime) -> None:
    runtime._gpu.driver._release("cuStreamDestroy", runtime._gpu.stream.handle)


def recorded_cold(runtime: TensorRtRuntime) -> None:
    run = Call.run
    loaded = runtime._loaded["encoder"]
    call = Call(loaded._new_context(), loaded)
    # its shapes are set, and the run behind them is left out
    Call.run = lambda self: None
    try:
        call({"pixels": runtime._gpu.zeros((1, 3, 64, 64), np.float32)})
    finally:
        Call.run = run
    runtime._gpu.driver.begin_capture(runtime._gpu.stream)
    call.run()


def waited_for_while_recording(runtime: TensorRtRuntime) -> None:
    runtime._gpu.driver.begin_capture(runtime._gpu.stream)
    runtime.synchronise()


def recording(runtime: TensorRtRuntime) -> Recording:
    """The encoder's, of one picture."""
    loaded = runtime._loaded["encoder"]
    return Recording(Call(loaded._new_context(), loaded), {"pixels": np.zeros((1, 3, 64, 64), np.float32)})


def recorded_context_of_other_shapes(runtime: TensorRtRuntime) -> None:
    recording(runtime)._call({"pixels": runtime._gpu.zeros((2, 3, 64, 64), np.float32)})


def recorded_context_let_go(runtime: TensorRtRuntime) -> None:
    made = recording(runtime)
    made._call = None
    made({"pixels": np.ones((1, 3, 64, 64), np.float32)})
    runtime.synchronise()


def recorded_memory_let_go(runtime: TensorRtRuntime) -> None:
    driver, gpu = runtime._gpu.driver, runtime._gpu
    gpu._pool._free.clear()
    gpu._pool.take_back = lambda size, address, memory: None
    made = recording(runtime)
    made._inputs.clear()
    driver.replay(made.graph, gpu.stream)
    runtime.synchronise()


def staging_changed_too_soon(runtime: TensorRtRuntime) -> None:
    runtime._gpu.driver.passed = lambda event: True
    runtime.encode(np.ones((1, 3, 64, 64), np.float32))
    runtime.encode(np.zeros((1, 3, 64, 64), np.float32))


FAULTS: dict[Callable[[TensorRtRuntime], None], str] = {
    misaligned: "not aligned to 256 bytes",
    output_too_short: "more than the allocation has",
    input_of_another_shape: "more than the allocation has",
    engine_on_another_stream: "on another stream, which was not waited for",
    memory_given_back: "was given back",
    destroyed_stream: "there is no stream",
    recorded_cold: "recorded without one before it",
    waited_for_while_recording: "waited for while it records",
    recorded_context_of_other_shapes: "shapes of a context are changed whose run is recorded",
    recorded_context_let_go: "a context ran that is gone",
    recorded_memory_let_go: "was given back",
    staging_changed_too_soon: "pinned memory was changed before",
}


@pytest.mark.parametrize("library", ["standard"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_double_rejects(fault: Callable[[TensorRtRuntime], None], runtime: TensorRtRuntime, library: Any) -> None:
    pixels = np.zeros((1, 3, 64, 64), np.float32)

    def faulty() -> None:
        fault(runtime)
        runtime.host(runtime.encode(pixels))

    runtime.host(runtime.encode(pixels))
    # a second picture's memory, under way when the fault happens
    runtime._gpu.put(pixels)
    with pytest.raises(Fault, match=FAULTS[fault]):
        faulty()
    library.machine.over = True


@pytest.mark.parametrize("library", ["standard"], indirect=True)
def test_without_waiting_the_answer_is_garbage(runtime: TensorRtRuntime, library: Any, fp32) -> None:
    embeddings = runtime.encode(some_pixels(fp32.model.config, 1))
    runtime._gpu.synchronise = lambda: None
    assert (runtime.host(embeddings).view(np.uint8) == GARBAGE).all()
    library.machine.over = True
