"""sam_edge.segment.prompts: what a set of prompts is known to be, whichever library's arrays it holds."""

from collections.abc import Callable

import numpy as np
import pytest

from sam_edge.errors import PromptError
from sam_edge.segment.config import DecoderConfig
from sam_edge.segment.prompts import (
    ABSENT,
    BACKGROUND,
    BOX_END,
    BOX_START,
    FOREGROUND,
    NOT_A_POINT,
    Prompts,
    in_parts,
)

RNG = np.random.default_rng(0)
POINTS = {"points": RNG.uniform(0, 64, (2, 3, 2, 2)).astype(np.float32), "labels": RNG.integers(0, 2, (2, 3, 2))}
BOXES = {"boxes": RNG.uniform(0, 64, (2, 3, 4)).astype(np.float32)}
MASKS = {"masks": RNG.normal(size=(2, 3, 1, 8, 8)).astype(np.float32)}
GIVEN = {
    "points": POINTS,
    "points and boxes": {**POINTS, **BOXES},
    "boxes": BOXES,
    "boxes and masks": {**BOXES, **MASKS},
    "masks": MASKS,
}


@pytest.fixture(params=["numpy", "torch"])
def array(request) -> Callable:
    """Makes arrays of a library's own of NumPy's."""
    return np.asarray if request.param == "numpy" else request.getfixturevalue("torch").as_tensor


@pytest.mark.parametrize(
    ("labels", "alone"),
    [
        ([FOREGROUND, NOT_A_POINT], True),
        ([FOREGROUND, ABSENT], True),
        ([FOREGROUND, FOREGROUND], False),
        ([FOREGROUND, BACKGROUND], False),
        ([BACKGROUND, NOT_A_POINT], False),
        ([BOX_START, BOX_END], False),
        ([NOT_A_POINT, ABSENT], False),
    ],
)
def test_a_foreground_point_alone_is_ambiguous_and_nothing_else(array, labels, alone):
    prompts = Prompts(array(np.zeros((1, 1, 2, 2), np.float32)), array(np.array([[labels]])))
    assert prompts.single_points.item() is alone
    with_mask = Prompts(prompts.coords, prompts.labels, array(np.zeros((1, 1, 1, 8, 8), np.float32)))
    assert not with_mask.single_points.any()


@pytest.mark.parametrize("kind", GIVEN)
def test_both_libraries_build_the_same(torch, kind):
    on_device = pytest.importorskip("sam_edge.models.prompts").on_device
    built = Prompts.build(**GIVEN[kind])
    assert (built.coords.dtype, built.labels.dtype) == (np.float32, np.int64)
    as_tensors = Prompts.build(**{name: torch.from_numpy(part) for name, part in GIVEN[kind].items()})
    for tensors in (as_tensors, on_device(built, "cpu"), on_device(as_tensors, "cpu")):
        assert (tensors.coords.dtype, tensors.labels.dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(tensors.coords.numpy(), built.coords)
        np.testing.assert_array_equal(tensors.labels.numpy(), built.labels)
        assert (tensors.masks is None) == (built.masks is None) == ("masks" not in GIVEN[kind])
        if built.masks is not None:
            np.testing.assert_array_equal(tensors.masks.numpy(), built.masks)
        assert (tensors.boxed, tensors.clicked) == (built.boxed, built.clicked)
        np.testing.assert_array_equal(tensors.single_points.numpy(), built.single_points)


@pytest.mark.parametrize("kind", GIVEN)
def test_prompts_come_in_segment_anything_s_order(kind):
    given, built = GIVEN[kind], Prompts.build(**GIVEN[kind])
    labels = [given["labels"]] if "labels" in given else []
    coords = [given["points"]] if "points" in given else []
    if "boxes" in given:
        labels.append(np.broadcast_to([BOX_START, BOX_END], (2, 3, 2)))
        coords.append(given["boxes"].reshape(2, 3, 2, 2))
    else:
        labels.append(np.full((2, 3, 1), NOT_A_POINT if "points" in given else ABSENT))
        coords.append(np.zeros((2, 3, 1, 2), np.float32))
    np.testing.assert_array_equal(built.labels, np.concatenate(labels, 2))
    np.testing.assert_array_equal(built.coords, np.concatenate(coords, 2))
    part = built.part(slice(1, 3), slice(1, 2))
    np.testing.assert_array_equal(part.coords, built.coords[1:, 1:])
    np.testing.assert_array_equal(part.labels, built.labels[1:, 1:])
    assert part.masks is None or np.array_equal(part.masks, built.masks[1:, 1:])


def test_empty_sets_of_points_become_no_point_at_all(array):
    none = Prompts.build(array(np.zeros((1, 2, 0, 2), np.float32)), array(np.zeros((1, 2, 0), np.int64)))
    assert none.labels.tolist() == [[[NOT_A_POINT]] * 2]
    assert none.coords.shape == (1, 2, 1, 2)


def test_a_decoder_in_parts_takes_what_no_mask_comes_with_or_is_drawn_of():
    first = np.full((2, 3, 2), FOREGROUND)
    clicks, mixed = Prompts.build(POINTS["points"], first), Prompts.build(POINTS["points"], 1 - first)
    boxes, both = Prompts.build(**BOXES), Prompts.build(POINTS["points"], first, **BOXES)
    masked = Prompts.build(POINTS["points"], first, **MASKS)
    plain, draws_boxes, draws_points = (
        DecoderConfig(),
        DecoderConfig(draws_boxes=True),
        DecoderConfig(draws_points=True),
    )
    for given, by_plain, by_boxes, by_points in (
        (clicks, True, True, True),
        (mixed, True, True, False),
        (boxes, True, False, False),
        (both, True, False, False),
        (masked, False, False, False),
    ):
        assert in_parts(given, plain) is by_plain
        assert in_parts(given, draws_boxes) is by_boxes
        assert in_parts(given, draws_points) is by_points
    assert (clicks.clicked, mixed.clicked, boxes.clicked, both.clicked) == (True, False, False, False)
    assert [one.boxed for one in (clicks, mixed, boxes, both)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({}, "at least one point, box or mask"),
        ({"points": POINTS["points"]}, "come together"),
        ({"labels": POINTS["labels"]}, "come together"),
    ],
    ids=["nothing", "no labels", "no points"],
)
def test_prompts_that_are_not_whole_are_refused(given, hint):
    with pytest.raises(PromptError, match=hint):
        Prompts.build(**given)


def test_coordinates_and_labels_that_do_not_match_are_refused(array):
    points, labels = (array(part) for part in POINTS.values())
    for wrong in ((points, labels[:1]), (points, labels[..., :1]), (points[0], labels[0]), (points[..., :1], labels)):
        # a TypeError where the run checks type hints, which see it first
        with pytest.raises((PromptError, TypeError), match=r"coords|labels"):
            Prompts(*wrong)
