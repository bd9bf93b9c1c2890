"""sam_edge.compress.taught: eq. 4's gradients beside those of the labels, on the first round of a step."""

import pytest
import torch

from sam_edge.compress.full_stage import LossWeights, embedding_loss
from sam_edge.compress.taught import TaughtSegmentation
from sam_edge.data.open import open_labelled
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.stream import Source, ViewStream, stack_views
from sam_edge.training.views import ViewOptions

ROUNDS = InteractiveOptions(rounds=2, interactive_share=1.0)


@pytest.fixture
def batch(tiny_config):
    views = ViewOptions(image_size=tiny_config.image_size, mask_size=tiny_config.mask_size, prompts=3)
    stream = ViewStream([Source(open_labelled("synthetic:6"))], views, seed=0)
    return stack_views([stream[0], stream[1]])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_the_labels_plus_the_weighted_embedding_loss(tiny_slim, make_sam, tiny_config, batch):
    teacher = make_sam(tiny_config, seed=5)
    weights = LossWeights(alpha=0.3, beta=0.0, gamma=0.0, labels=0.0)
    both = gradients(tiny_slim, TaughtSegmentation(tiny_slim, ROUNDS, 7, teacher, weights)(batch, 3)[0])
    labels = gradients(tiny_slim, InteractiveSegmentation(tiny_slim, ROUNDS, 7)(batch, 3)[0])
    pixels = batch.image.float()
    mine, theirs = tiny_slim.encode(tiny_slim.preprocess(pixels)), teacher.encode(teacher.preprocess(pixels)).detach()
    taught = gradients(tiny_slim, 0.3 * embedding_loss(mine, theirs))
    assert set(both) == set(labels)
    for name, got in both.items():
        torch.testing.assert_close(got, labels[name] + taught.get(name, 0.0), rtol=1e-3, atol=1e-5)
    assert max(grad.abs().max() for grad in taught.values()) > 1e-3
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", ["beta", "gamma"])
def test_tokens_and_masks_reach_encoder_and_decoder(tiny_slim, make_sam, tiny_config, batch, name):
    teacher = make_sam(tiny_config, seed=5)
    weights = LossWeights(**({"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "labels": 0.0} | {name: 1.0}))
    method = TaughtSegmentation(tiny_slim, ROUNDS, 7, teacher, weights)
    value, report = method(batch, 3)
    alone, _ = InteractiveSegmentation(tiny_slim, ROUNDS, 7)(batch, 3)
    assert report["teacher"] > 0
    torch.testing.assert_close(value, alone + report["teacher"], rtol=1e-4, atol=1e-4)
    both, labels = gradients(tiny_slim, value), gradients(tiny_slim, alone)
    for part in ("image_encoder", "mask_decoder"):
        moved = [(both[n] - labels[n]).abs().max() for n in labels if n.startswith(part)]
        assert max(moved) > 1e-4


def test_a_larger_teacher_sees_the_same_view_and_itself_adds_nothing(tiny_slim, make_sam, tiny_config, batch):
    weights = LossWeights(labels=0.0)
    larger = make_sam(tiny_config.replace(image_size=128), seed=5)
    assert TaughtSegmentation(tiny_slim, ROUNDS, 7, larger, weights)(batch, 3)[1]["teacher"] > 0
    same = make_sam(tiny_slim.config)
    assert TaughtSegmentation(tiny_slim, ROUNDS, 7, same, weights)(batch, 3)[1]["teacher"] < 1e-4
