"""sam_edge.export.parity: a number that is 1 for equal answers only, over prompts that try every kind."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sam_edge.errors import ExportError
from sam_edge.export.parity import Answers, Parity, answers, compare, mask_agreement, parity_prompts, require
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.segment.frame import Frame
from sam_edge.segment.prompts import ABSENT, BOX_START, FOREGROUND


def random_answers(seed: int) -> Answers:
    """Answers about nothing."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(1, 4, 3, 3)).astype(np.float32)
    logits, iou = (rng.normal(size=(1, 5, 4, *size)).astype(np.float32) for size in ((6, 6), ()))
    return Answers(embeddings, logits, iou)


def test_mask_agreement_is_iou_by_counting():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 4, 7, 5)).astype(np.float32)
    b[0, 1] = a[0, 1]
    a[1, 2] = b[1, 2] = -1.0
    a[1, 1] = -1.0
    wanted = []
    for first, second in zip(a.reshape(-1, 7, 5) > 0, b.reshape(-1, 7, 5) > 0, strict=True):
        union = overlap = 0
        for one, other in zip(first.ravel(), second.ravel(), strict=True):
            union += int(one or other)
            overlap += int(one and other)
        wanted.append(overlap / union if union else 1.0)
    got = mask_agreement(a, b)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert got.min() == 0
    assert got.max() == 1


def test_equal_answers_agree_and_others_do_not():
    first, second = random_answers(0), random_answers(1)
    same = compare([first, second], [first, second])
    assert (same.mask_iou, same.largest_embedding_error, same.largest_logit_error) == (1.0, 0.0, 0.0)
    assert (same.images, same.prompts) == (2, 5)
    other = compare([first, second], [first, first])
    assert 0.6 < other.mask_iou < 0.8
    assert other.largest_embedding_error > 0.5


def test_errors_are_the_largest_and_relative_to_the_reference():
    wanted = random_answers(0)
    embeddings, logits = wanted.embeddings.copy(), wanted.logits.copy()
    embeddings[0, 1, 2, 2] += 0.25
    logits[0, 3, 1, 5, 5] -= 0.5
    parity = compare([wanted], [Answers(embeddings, logits, wanted.iou)])
    assert parity.largest_embedding_error == pytest.approx(0.25 / np.abs(wanted.embeddings).max(), rel=1e-5)
    assert parity.largest_logit_error == pytest.approx(0.5 / np.abs(wanted.logits).max(), rel=1e-5)


@pytest.mark.parametrize("shape", [(48, 64), (64, 64), (64, 9)], ids=str)
def test_prompts_try_points_boxes_and_absent_slots_inside_the_picture(shape):
    prompts = parity_prompts(Frame((480, 640), shape, 64))
    assert prompts.coords.shape == (1, 13, 3, 2)
    given = prompts.labels[0] >= 0
    assert (prompts.labels[0, :9, 0] == FOREGROUND).all()
    assert (prompts.labels[0, 9:, 0] == BOX_START).all()
    assert (prompts.labels[0, :, 2] == ABSENT).all()
    limit = np.array([shape[1], shape[0]])
    inside = (prompts.coords[0] > 0) & (prompts.coords[0] < limit)
    assert inside[given].all()
    corners = prompts.coords[0, 9:, :2]
    assert (corners[:, 0] < corners[:, 1]).all()
    assert len({tuple(point) for point in prompts.coords[0, :9, 0].tolist()}) == 9


def test_two_runtimes_of_the_same_weights_agree_and_of_others_do_not(tiny_config, make_sam, photo):
    first, again, other = (answers(TorchRuntime(make_sam(tiny_config, seed)), [photo]) for seed in (0, 0, 1))
    assert first[0].logits.shape == (1, 13, 4, 32, 32)
    assert compare(first, again).mask_iou == 1
    assert compare(first, other).mask_iou < 0.9


@pytest.mark.parametrize("iou", [0.989, math.nan])
def test_a_miss_raises_with_its_numbers(iou):
    with pytest.raises(ExportError, match=r"the fp16 export disagrees with torch: .* on 3 pictures is below 0\.99"):
        require(Parity(iou, 0.0, 0.0, 3, 13), 0.99, "the fp16 export")


def test_a_split_decoder_that_disagrees_raises_too():
    with pytest.raises(ExportError, match=r"the split decoder of the fp32 export disagrees with torch: .* 0\.5000"):
        require(Parity(1.0, 0.0, 0.0, 3, 13, split_mask_iou=0.5), 0.99, "the fp32 export")
    require(Parity(1.0, 0.0, 0.0, 3, 13, split_mask_iou=1.0), 0.99, "the fp32 export")


def test_the_split_decoder_is_compared_with_the_whole_one(tiny_config, make_sam, photo):
    runtime = TorchRuntime(make_sam(tiny_config))
    whole, split = answers(runtime, [photo]), answers(runtime, [photo], split=True)
    parity = compare(whole, split)
    assert parity.split_mask_iou == 1
    assert parity.largest_split_error is not None
    assert parity.largest_split_error < 1e-6
    assert compare(split, whole).split_mask_iou is None
    shifted = [replace(one, split=np.roll(one.split, 1, 1)) for one in split]
    assert compare(whole, shifted).split_mask_iou < 0.9


def test_a_hit_passes():
    require(Parity(0.99, 0.0, 0.0, 3, 13), 0.99, "the fp16 export")
