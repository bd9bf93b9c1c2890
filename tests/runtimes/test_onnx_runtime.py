"""sam_edge.runtimes.onnx_runtime: arrays or a device's own values between graphs, and providers by name."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.runtimes import onnx_runtime
from sam_edge.runtimes.cuda import cuda_devices
from sam_edge.runtimes.onnx_runtime import PROVIDERS, OnnxRuntime, clash, session_options
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Prediction, Runtime

SETS = 10
"""More than two calls take."""


def bound(path) -> OnnxRuntime:
    """A runtime that leaves what it computes where it is, as on a GPU."""
    runtime = OnnxRuntime(path, threads=1)
    runtime.keeps_arrays = False
    return runtime


def some_prompts(exported, batch: int = 1, sets: int = SETS, points: int = 2, with_masks: bool = False) -> Prompts:
    """Random points, the last of each set absent where there are several."""
    rng, config = np.random.default_rng(sets), exported.model.config
    labels = rng.integers(-1, 4, (batch, sets, points))
    masks = rng.normal(size=(batch, sets, 1, config.mask_size, config.mask_size)).astype(np.float32)
    coords = rng.uniform(0, config.image_size, (batch, sets, points, 2)).astype(np.float32)
    return Prompts(coords, labels, masks if with_masks else None)


def some_pixels(exported, batch: int) -> np.ndarray:
    """Noise in place of pictures."""
    side = exported.model.config.image_size
    return np.random.default_rng(batch).normal(size=(batch, 3, side, side)).astype(np.float32)


def predicted(runtime: Runtime, pixels: np.ndarray, prompts: Prompts) -> Prediction:
    """By prepare and predict."""
    return runtime.predict(runtime.prepare(runtime.encode(pixels)), prompts)


def test_it_is_a_runtime(fp32):
    assert isinstance(fp32.runtime, Runtime)
    assert fp32.runtime.name == "onnxruntime"
    assert fp32.runtime.config == fp32.runtime.folder.config


@pytest.mark.parametrize("name", ["fp32", "int8"])
@pytest.mark.parametrize("batch", [1, 3])
def test_bound_values_give_what_arrays_give(request, name, batch):
    exported = request.getfixturevalue(name)
    plain, runtime, pixels = exported.runtime, bound(exported.path), some_pixels(exported, batch)
    embeddings, wanted = runtime.encode(pixels), plain.encode(pixels)
    assert isinstance(embeddings, ort.OrtValue)
    np.testing.assert_array_equal(runtime.host(embeddings), wanted)
    for with_masks in (False, True):
        prompts = some_prompts(exported, batch, with_masks=with_masks)
        for found, answer in zip(runtime.decode(embeddings, prompts), plain.decode(wanted, prompts), strict=True):
            assert isinstance(found, np.ndarray)
            np.testing.assert_array_equal(found, answer)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_bound_parts_give_what_arrays_give(request, name):
    exported = request.getfixturevalue(name)
    plain, runtime, pixels = exported.runtime, bound(exported.path), some_pixels(exported, 1)
    state, wanted = runtime.prepare(runtime.encode(pixels)), plain.prepare(plain.encode(pixels))
    assert state.keys() == wanted.keys()
    for part, value in state.items():
        assert isinstance(value, ort.OrtValue)
        np.testing.assert_array_equal(value.numpy(), wanted[part])
    prompts = some_prompts(exported)
    prediction, answer = runtime.predict(state, prompts), plain.predict(wanted, prompts)
    np.testing.assert_array_equal(prediction.iou, answer.iou)
    everything = plain.upscale(answer, np.arange(SETS).repeat(4), np.tile(np.arange(4), SETS))
    # all in reverse; some of some calls, out of order and with repetitions; one; none
    for sets in (np.arange(SETS)[::-1], np.array([7, 0, 7, 9, 0, 7]), np.array([5]), np.zeros(0, np.int64)):
        masks = np.arange(len(sets)) % 4
        found = runtime.upscale(prediction, sets, masks)
        assert found.shape == (len(sets), *everything.shape[1:])
        np.testing.assert_array_equal(found, everything[4 * sets + masks])


@pytest.mark.parametrize("with_masks", [False, True])
def test_bound_values_without_sets_or_by_the_whole_decoder(fp32, with_masks):
    runtime, pixels = bound(fp32.path), some_pixels(fp32, 1)
    prompts = some_prompts(fp32, with_masks=with_masks)
    prediction, wanted = (predicted(one, pixels, prompts) for one in (runtime, fp32.runtime))
    sets, masks = np.array([8, 1, 8]), np.array([0, 3, 2])
    np.testing.assert_array_equal(prediction.iou, wanted.iou)
    np.testing.assert_array_equal(runtime.upscale(prediction, sets, masks), fp32.runtime.upscale(wanted, sets, masks))
    nobody = Prompts(np.zeros((1, 0, 2, 2), np.float32), np.zeros((1, 0, 2), np.int64))
    assert predicted(runtime, pixels, nobody).iou.shape == (0, 4)
    logits, iou = fp32.runtime.decode(fp32.runtime.encode(pixels), nobody)
    assert (logits.shape[:3], iou.shape) == ((1, 0, 4), (1, 0, 4))


def test_an_earlier_prediction_outlives_later_ones(fp32):
    runtime, sets, masks = bound(fp32.path), np.array([2, 0]), np.array([1, 3])
    first, second = some_pixels(fp32, 2)[:, None]
    prediction = predicted(runtime, first, some_prompts(fp32))
    before = runtime.upscale(prediction, sets, masks)
    later = runtime.upscale(predicted(runtime, second, some_prompts(fp32)), sets, masks)
    assert np.abs(later - before).max() > 0
    np.testing.assert_array_equal(runtime.upscale(prediction, sets, masks), before)


@pytest.mark.parametrize("with_masks", [False, True])
def test_sets_a_few_at_a_time_give_what_one_call_gives(fp32, with_masks):
    prompts, embeddings = some_prompts(fp32, 2, with_masks=with_masks), fp32.embeddings(2)
    whole = OnnxRuntime(fp32.path, threads=1)
    whole.sets_at_once = SETS
    wanted, wanted_iou = whole.decode(embeddings, prompts)
    logits, iou = fp32.runtime.decode(embeddings, prompts)
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(iou, wanted_iou, rtol=1e-5, atol=1e-5)


def test_a_graph_that_answers_nothing_is_not_taken_for_one_that_found_nothing(fp32, monkeypatch):
    runtime = OnnxRuntime(fp32.path, threads=1)
    nothing = {"logits": np.zeros((0, 0, 4, 4, 4), np.float32), "iou": np.zeros((0, 4), np.float32)}
    monkeypatch.setattr(runtime, "_run", lambda graph, inputs: nothing)
    embeddings = fp32.embeddings()
    for ask in (runtime.decode, lambda _, prompts: runtime.predict({"embeddings": embeddings}, prompts)):
        with pytest.raises(ExportError, match=r"answers \(0.* in onnxruntime where .* were asked: export it again"):
            ask(embeddings, some_prompts(fp32, points=1))


def test_inputs_may_be_doubles_and_views_of_larger_arrays(fp32):
    pixels = some_pixels(fp32, 4)
    prompts = some_prompts(fp32, points=3)
    halved = Prompts(prompts.coords[:, ::2, ::-1].astype(np.float64), prompts.labels[:, ::2, ::-1].astype(np.int32))
    dense = Prompts(halved.coords.astype(np.float32), halved.labels.astype(np.int64))
    for runtime in (fp32.runtime, bound(fp32.path)):
        embeddings = runtime.encode(pixels[::4].astype(np.float64))
        np.testing.assert_array_equal(runtime.host(embeddings), fp32.runtime.encode(pixels[:1]))
        for found, wanted in zip(runtime.decode(embeddings, halved), runtime.decode(embeddings, dense), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_a_graph_is_loaded_when_it_is_first_called_and_once(fp32, monkeypatch):
    library, loaded = onnx_runtime.load_onnxruntime(), []
    session = library.InferenceSession
    monkeypatch.setattr(
        library, "InferenceSession", lambda file, *a, **k: loaded.append(file) or session(file, *a, **k)
    )
    runtime = OnnxRuntime(fp32.path, threads=1, kernels=False)
    assert loaded == []
    for _ in range(2):
        predicted(runtime, some_pixels(fp32, 1), some_prompts(fp32))
    assert [file.name for file in loaded] == ["encoder.onnx", "prepare.onnx", "predict.onnx"]


def test_sessions_set_no_memory_aside_and_do_not_spin():
    options = session_options({"integers": True}, threads=3)
    assert not options.enable_mem_pattern
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_is_not_built_in_is_refused_with_those_that_are(fp32, monkeypatch, provider):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=rf"no {PROVIDERS[provider]} here.* in cpu\).*--device cpu") as no:
        OnnxRuntime(fp32.path, provider)
    assert "\n" not in str(no.value)


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="has no CUDA provider")
@pytest.mark.skipif(bool(cuda_devices()), reason="there is a CUDA device")
def test_a_provider_that_falls_back_to_the_cpu_is_refused(fp32):
    with pytest.raises(BackendUnavailableError, match=r"could not start its CUDAExecutionProvider.*--device cpu"):
        OnnxRuntime(fp32.path, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="has no CUDA provider")
@pytest.mark.skipif(not cuda_devices(), reason="no CUDA device")
def test_on_a_gpu_masks_are_those_of_the_cpu(fp32):
    try:
        runtime = OnnxRuntime(fp32.path, "cuda")
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    prompts, pixels = some_prompts(fp32, sets=70), some_pixels(fp32, 1)
    prediction, wanted = (predicted(one, pixels, prompts) for one in (runtime, fp32.runtime))
    np.testing.assert_allclose(prediction.iou, wanted.iou, rtol=1e-2, atol=1e-2)
    sets, masks = np.array([69, 1, 40]), np.array([0, 3, 2])
    found, answer = runtime.upscale(prediction, sets, masks), fp32.runtime.upscale(wanted, sets, masks)
    np.testing.assert_allclose(found, answer, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("installed", "wrong"),
    [
        ({}, None),
        ({"onnxruntime": "1.23"}, None),
        ({"onnxruntime-gpu": "1.23"}, None),
        ({"onnxruntime": "1.23", "onnxruntime-gpu": "1.24"}, "onnxruntime 1.23 and onnxruntime-gpu 1.24"),
    ],
    ids=["none", "cpu", "gpu", "both"],
)
def test_two_distributions_in_one_folder_are_told(installed, wrong, monkeypatch):
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(onnx_runtime, "version", version)
    said = clash()
    assert (said is None) == (wrong is None)
    assert said is None or (said.startswith(wrong) and "pip uninstall --yes onnxruntime onnxruntime-gpu" in said)


def test_of_embeddings_only_the_library_that_made_them_is_asked():
    """`host` brings a device's own value to NumPy by its `numpy`, and leaves arrays as they are."""
    value, array = SimpleNamespace(numpy=lambda: np.arange(3)), np.arange(4)
    runtime = OnnxRuntime.__new__(OnnxRuntime)
    np.testing.assert_array_equal(runtime.host(value), np.arange(3))
    assert runtime.host(array) is array


def test_a_graphs_errors_are_told_in_a_line(fp32, monkeypatch):
    with pytest.raises(ExportError, match=r"the encoder of .* does not run in onnxruntime .*export it again"):
        OnnxRuntime(fp32.path, threads=1)._called("encoder", {"pixels": np.zeros((1, 2, 8, 8), np.float32)})
    # from the library, though it is of Python's own kinds: the input is missing
    with pytest.raises(ExportError, match="export it again"):
        OnnxRuntime(fp32.path, threads=1)._called("encoder", {"something": np.zeros(1, np.float32)})
    # model.json may say that an output is called otherwise
    monkeypatch.setattr(OnnxRuntime, "_run", lambda *_: {"logits": np.zeros(1, np.float32)})
    with pytest.raises(ExportError, match=r"model\.json names no output iou of a graph: export it again"):
        OnnxRuntime(fp32.path, threads=1)._called("decoder", {})["iou"]
