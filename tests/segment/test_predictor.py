"""sam_edge.segment.predictor: segment-anything's predictor, with the same weights, says the same."""

import numpy as np
import pytest
import segment_anything
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from sam_edge.errors import DataError, PromptError
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.segment.predictor import SamPredictor

MASK = np.random.default_rng(5).normal(size=(1, 32, 32)).astype(np.float32)
POINT = {"point_coords": np.array([[31.0, 22.0]]), "point_labels": np.array([1])}
POINTS = {"point_coords": np.array([[31.0, 22.0], [70.5, 9.25], [3, 44]]), "point_labels": np.array([1, 0, 1])}
BOX = {"box": np.array([12.5, 4, 60, 41])}
PROMPTS = {
    "point": POINT,
    "points": POINTS,
    "integers": {"point_coords": np.array([[31, 22]]), "point_labels": np.array([0])},
    "box": BOX,
    "box as a row": {"box": BOX["box"][None]},
    "box and point": {**BOX, **POINT},
    "point and mask": {**POINT, "mask_input": MASK},
    "box, points and mask": {**BOX, **POINTS, "mask_input": MASK},
    "mask": {"mask_input": MASK},
}


@pytest.fixture
def predictors(tiny_config, make_sam):
    """segment-anything's predictor and ours, on the same weights."""
    return segment_anything.SamPredictor(make_sam(tiny_config)), SamPredictor(make_sam(tiny_config))


def assert_same_answers(theirs, ours) -> None:
    """Masks, IoU and low-resolution logits agree to 1e-4; `theirs` and `ours` are asked with `return_logits`."""
    for wanted, got in zip(theirs, ours, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("multimask", [True, False], ids=["three", "single"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_every_prompt_is_answered_as_segment_anything_does(predictors, photo, kind, multimask):
    answers = []
    for predictor in predictors:
        predictor.set_image(photo)
        answers.append(predictor.predict(**PROMPTS[kind], multimask_output=multimask, return_logits=True))
    assert_same_answers(*answers)
    count = 3 if multimask else 1
    assert [part.shape for part in answers[1]] == [(count, 50, 90), (count,), (count, 32, 32)]
    assert np.ptp(answers[1][0]) > 0.1


def test_masks_are_boolean_and_cut_at_zero(predictors, photo):
    theirs, ours = predictors
    for predictor in predictors:
        predictor.set_image(photo)
    masks, wanted = ours.predict(**POINTS)[0], theirs.predict(**POINTS)[0]
    logits = ours.predict(**POINTS, return_logits=True)[0]
    assert masks.dtype == wanted.dtype == bool
    np.testing.assert_array_equal(masks, logits > 0)
    assert (masks != wanted).mean() < 1e-3
    assert 0.01 < masks.mean() < 0.99


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (10, 100), (101, 10), (200, 131)], ids=str)
def test_pictures_of_any_shape_are_framed_as_segment_anything_does(predictors, shape):
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    point = np.array([[shape[1] * 0.4, shape[0] * 0.7]])
    answers = []
    for predictor in predictors:
        predictor.set_image(picture)
        answers.append(predictor.predict(point, np.array([1]), return_logits=True))
    assert_same_answers(*answers)
    assert predictors[1].input_size == tuple(predictors[0].input_size)
    assert predictors[1].original_size == shape


def test_bgr_is_rgb_turned_round(predictors, photo):
    answers = []
    for predictor in predictors:
        predictor.set_image(photo[..., ::-1], "BGR")
        answers.append(predictor.predict(**POINT, return_logits=True))
    assert_same_answers(*answers)
    ours = predictors[1]
    ours.set_image(photo)
    np.testing.assert_array_equal(answers[1][0], ours.predict(**POINT, return_logits=True)[0])
    ours.set_image(photo, "BGR")
    assert np.abs(answers[1][0] - ours.predict(**POINT, return_logits=True)[0]).max() > 1e-3


def test_many_prompt_sets_at_once_are_segment_anything_s(predictors, photo):
    generator = torch.Generator().manual_seed(3)
    points = 64 * torch.rand(5, 2, 2, generator=generator)
    labels = torch.randint(0, 2, (5, 2), generator=generator)
    boxes = (64 * torch.rand(5, 2, 2, generator=generator)).sort(dim=1).values.flatten(1)
    answers = []
    for predictor in predictors:
        predictor.set_image(photo)
        result = predictor.predict_torch(points, labels, boxes, return_logits=True)
        answers.append([part.detach().numpy() for part in result])
    assert_same_answers(*answers)


def test_low_resolution_answers_come_to_the_picture_s_size_as_segment_anything_s_do(predictors, photo):
    rng = np.random.default_rng(4)
    points, labels = rng.uniform(0, 64, (5, 2, 2)).astype(np.float32), rng.integers(0, 2, (5, 2))
    theirs, ours = predictors
    for predictor in predictors:
        predictor.set_image(photo)
    given = torch.from_numpy(points), torch.from_numpy(labels)
    wanted = [part.detach().numpy() for part in theirs.predict_torch(*given, return_logits=True)]
    low_res, iou = ours.predict_low_res(points, labels)
    logits, masks = ours.logits(low_res), ours.masks(low_res)
    assert_same_answers(wanted, (logits, iou, low_res))
    assert masks.dtype == bool
    assert masks.shape == logits.shape == (5, 3, 50, 90)
    assert np.abs(wanted[0][masks != (wanted[0] > 0)]).max(initial=0) < 1e-4
    assert ours.predict_torch(*given)[0].dtype == torch.bool
    np.testing.assert_array_equal(ours.predict_torch(*given)[0].numpy(), masks)


def test_a_transformed_image_is_taken_as_segment_anything_takes_it(predictors, photo):
    answers = []
    for predictor in predictors:
        resized = ResizeLongestSide(64).apply_image(photo)
        predictor.set_torch_image(torch.as_tensor(resized).permute(2, 0, 1)[None], photo.shape[:2])
        answers.append(predictor.predict(**BOX, return_logits=True))
    assert_same_answers(*answers)
    # it is the picture itself
    predictors[1].set_image(photo)
    assert_same_answers(answers[1], predictors[1].predict(**BOX, return_logits=True))
    theirs, ours = predictors
    torch.testing.assert_close(ours.get_image_embedding(), theirs.get_image_embedding(), rtol=1e-4, atol=1e-4)


def test_low_resolution_logits_can_be_fed_back(predictors, photo):
    answers = []
    for predictor in predictors:
        predictor.set_image(photo)
        low_res = predictor.predict(**POINT, multimask_output=False)[2]
        answers.append(predictor.predict(**POINTS, mask_input=low_res, return_logits=True))
    assert_same_answers(*answers)


def test_a_new_image_replaces_the_old_one(predictors, photo):
    ours = predictors[1]
    ours.set_image(photo)
    first = ours.predict(**POINT, return_logits=True)[0]
    ours.set_image(255 - photo[:30])
    assert ours.predict(**POINT)[0].shape == (3, 30, 90)
    ours.set_image(photo)
    np.testing.assert_array_equal(ours.predict(**POINT, return_logits=True)[0], first)


def test_a_runtime_is_taken_like_a_model(tiny_sam, tiny_config, make_sam, photo):
    answers = []
    for predictor in (SamPredictor(tiny_sam), SamPredictor(TorchRuntime(make_sam(tiny_config)))):
        predictor.set_image(photo)
        answers.append(predictor.predict(**POINT, return_logits=True))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_is_predicted_before_an_image_is_set(predictors, photo):
    ours = predictors[1]
    with pytest.raises(PromptError, match="an image must be set"):
        ours.predict(**POINT)
    ours.set_image(photo)
    assert ours.is_image_set
    ours.reset_image()
    assert not ours.is_image_set
    with pytest.raises(PromptError, match="an image must be set"):
        ours.predict(**POINT)
    with pytest.raises(PromptError, match="an image must be set"):
        ours.get_image_embedding()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "at least one point, box or mask"),
        ({"point_coords": np.zeros((2, 2))}, "one label for each"),
        ({"point_coords": np.zeros((2, 2)), "point_labels": np.ones(3)}, "one label for each"),
        ({"point_coords": np.zeros((2, 3)), "point_labels": np.ones(2)}, "coord"),
        ({"point_coords": np.zeros(2), "point_labels": np.ones(2)}, "coord"),
        ({"point_labels": np.ones(2)}, "point"),
        ({"box": np.zeros(3)}, "box"),
        ({"box": np.zeros((2, 4))}, "box"),
        ({**POINT, "mask_input": np.zeros((1, 16, 16), np.float32)}, "mask"),
    ],
    ids=[
        "nothing",
        "no labels",
        "other count",
        "three coordinates",
        "flat",
        "no points",
        "short box",
        "two boxes",
        "other mask",
    ],
)
def test_prompts_that_do_not_match_are_refused(predictors, photo, given, match):
    ours = predictors[1]
    ours.set_image(photo)
    with pytest.raises(PromptError, match=match):
        ours.predict(**given)


def test_other_formats_and_shapes_of_images_are_refused(predictors, photo):
    ours = predictors[1]
    with pytest.raises(PromptError, match="RGB or BGR, got HSV"):
        ours.set_image(photo, "HSV")
    for wrong in (photo[..., 0], photo.astype(np.float32), np.dstack([photo, photo[..., :1]])):
        with pytest.raises(DataError, match="H x W x 3 uint8"):
            ours.set_image(wrong)
    with pytest.raises(PromptError, match="long side 64"):
        ours.set_torch_image(torch.zeros(1, 3, 32, 48), (10, 15))
