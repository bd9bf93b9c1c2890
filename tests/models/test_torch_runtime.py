"""sam_edge.segment.runtime: the split contract on torch, in whichever form the walk takes."""

import pytest
import torch

from sam_edge.models.factored import FactoredDecoder
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.split import PlainSplit
from sam_edge.models.torch_runtime import TorchRuntime
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
    generator, config = torch.Generator().manual_seed(points), runtime.config
    coords = config.image_size * torch.rand(1, sets, points, 2, generator=generator)
    masks = torch.randn(1, sets, 1, config.mask_size, config.mask_size, generator=generator) if with_masks else None
    return Prompts.build(coords, torch.ones(1, sets, points, dtype=torch.long), masks=masks)


def some_embeddings(runtime: TorchRuntime) -> torch.Tensor:
    """A random embedding of one image."""
    shape = (1, runtime.config.decoder.dim, runtime.config.grid, runtime.config.grid)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def assert_split_is_decode(runtime: TorchRuntime, state: object, prompts: Prompts) -> Prediction:
    """All masks, in reverse and with a repetition, and the IoU are those of `decode`."""
    logits, iou = runtime.decode(some_embeddings(runtime), prompts)
    prediction = runtime.predict(state, prompts)
    sets = torch.arange(iou.shape[1]).flip(0).repeat_interleave(4)
    masks = torch.arange(4).repeat(iou.shape[1])
    sets, masks = torch.cat([sets, sets[:1]]), torch.cat([masks, masks[:1]])
    torch.testing.assert_close(prediction.iou, iou[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(runtime.upscale(prediction, sets, masks), logits[0, sets, masks], rtol=1e-5, atol=1e-4)
    return prediction


def test_torch_is_a_runtime(tiny):
    assert isinstance(tiny, Runtime)


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
    sets, masks = torch.tensor([2, 0]), torch.tensor([1, 3])
    prediction = nano.predict(state, first)
    before = nano.upscale(prediction, sets, masks)
    nano.upscale(nano.predict(state, second), sets, masks)
    torch.testing.assert_close(nano.upscale(prediction, sets, masks), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_no_wanted_mask_is_an_answer_too(request, name):
    runtime = request.getfixturevalue(name)
    prediction = runtime.predict(runtime.prepare(some_embeddings(runtime)), some_prompts(runtime))
    none = torch.zeros(0, dtype=torch.long)
    assert runtime.upscale(prediction, none, none).shape == (0, runtime.config.mask_size, runtime.config.mask_size)
