"""sam_edge.models.torch_runtime: the contract of runtimes on torch, in whichever form the walk takes."""

import numpy as np
import pytest
import torch

from sam_edge.errors import BackendUnavailableError
from sam_edge.models.cost import cost
from sam_edge.models.factored import FactoredDecoder
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.split import PlainSplit
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Prediction, Runtime


@pytest.fixture(scope="module")
def nano() -> TorchRuntime:
    """The smallest model that is factored."""
    return TorchRuntime(load_model("nano"))


@pytest.fixture
def tiny(tiny_sam: EdgeSam) -> TorchRuntime:
    """A decoder so narrow that the plain walk is cheaper."""
    return TorchRuntime(tiny_sam)


def some_prompts(runtime: TorchRuntime, points: int = 1, with_masks: bool = False, sets: int = 4) -> Prompts:
    """Random points about one image."""
    rng, config = np.random.default_rng(points), runtime.config
    coords = rng.uniform(0, config.image_size, (1, sets, points, 2)).astype(np.float32)
    masks = rng.normal(size=(1, sets, 1, config.mask_size, config.mask_size)).astype(np.float32)
    return Prompts.build(coords, np.ones((1, sets, points), np.int64), masks=masks if with_masks else None)


def some_embeddings(runtime: TorchRuntime) -> torch.Tensor:
    """A random embedding of one image."""
    shape = (1, runtime.config.decoder.dim, runtime.config.grid, runtime.config.grid)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_split_is_decode(runtime: TorchRuntime, state: object, prompts: Prompts) -> Prediction:
    """All masks, in reverse and with a repetition, and the IoU are those of `decode`."""
    logits, iou = runtime.decode(some_embeddings(runtime), prompts)
    prediction = runtime.predict(state, prompts)
    sets = np.arange(iou.shape[1])[::-1].repeat(4)
    masks = np.tile(np.arange(4), iou.shape[1])
    sets, masks = np.append(sets, sets[0]), np.append(masks, masks[0])
    np.testing.assert_allclose(prediction.iou, iou[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(runtime.upscale(prediction, sets, masks), logits[0, sets, masks], rtol=1e-5, atol=1e-4)
    return prediction


def test_torch_is_a_runtime(tiny):
    assert isinstance(tiny, Runtime)
    assert tiny.cost == cost(tiny.config)


def test_embeddings_stay_tensors_and_all_else_is_numpy(tiny, tiny_sam):
    pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    embeddings = tiny.encode(pixels)
    with torch.inference_mode():
        wanted = tiny_sam.image_encoder(torch.from_numpy(pixels))
    assert torch.equal(embeddings, wanted)
    np.testing.assert_array_equal(tiny.host(embeddings), wanted.numpy())
    prompts = some_prompts(tiny)
    prediction = tiny.predict(tiny.prepare(embeddings[:1]), prompts)
    logits = tiny.upscale(prediction, np.array([0]), np.array([3]))
    for value in (*tiny.decode(embeddings[:1], prompts), prediction.iou, logits):
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float32


def test_points_are_factored_where_that_pays(nano):
    prediction = assert_split_is_decode(nano, nano.prepare(some_embeddings(nano)), some_prompts(nano))
    assert isinstance(prediction.handle[0], FactoredDecoder)


@pytest.mark.parametrize("kind", ["many points", "mask prompts", "a narrow decoder"])
def test_what_cannot_or_should_not_be_factored_takes_the_plain_walk(nano, tiny, kind):
    runtime = tiny if kind == "a narrow decoder" else nano
    prompts = some_prompts(runtime, 30 if kind == "many points" else 1, kind == "mask prompts")
    prediction = assert_split_is_decode(runtime, runtime.prepare(some_embeddings(runtime)), prompts)
    assert isinstance(prediction.handle[0], PlainSplit)


def test_one_state_serves_prompts_of_every_kind(nano):
    state = nano.prepare(some_embeddings(nano))
    for prompts in (
        some_prompts(nano),
        some_prompts(nano, with_masks=True),
        some_prompts(nano, 30),
        some_prompts(nano, 2),
        some_prompts(nano, sets=1),
    ):
        assert_split_is_decode(nano, state, prompts)


def test_an_earlier_prediction_outlives_later_ones(nano):
    state = nano.prepare(some_embeddings(nano))
    first, second = some_prompts(nano), some_prompts(nano, 2)
    sets, masks = np.array([2, 0]), np.array([1, 3])
    prediction = nano.predict(state, first)
    before = nano.upscale(prediction, sets, masks)
    nano.upscale(nano.predict(state, second), sets, masks)
    np.testing.assert_array_equal(nano.upscale(prediction, sets, masks), before)


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_no_wanted_mask_is_an_answer_too(request, name):
    runtime = request.getfixturevalue(name)
    prediction = runtime.predict(runtime.prepare(some_embeddings(runtime)), some_prompts(runtime))
    none = np.zeros(0, np.int64)
    assert runtime.upscale(prediction, none, none).shape == (0, runtime.config.mask_size, runtime.config.mask_size)


def test_an_unknown_device_lists_the_allowed_ones():
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(BackendUnavailableError, match="auto, cpu, cuda"):
        resolve_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_cuda_is_refused_and_auto_is_the_cpu():
    assert resolve_device("auto") == "cpu"
    with pytest.raises(BackendUnavailableError, match="--device cpu"):
        resolve_device("cuda")
