"""Prompts that are drawn: the mask prompt that a box or a click becomes, wherever it is asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator as TheirGenerator
from segment_anything import SamPredictor as TheirPredictor

from sam_edge.models.drawn_prompts import CLICK_REACH_PX, DEEPEST, drawn
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.prompts import Prompts

BOX = [10.0, 22.5, 41.0, 33.0]


@pytest.fixture
def drawing(tiny_config, make_sam):
    """The tiny SAM with drawn boxes."""
    return make_sam(tiny_config.replace(decoder=replace(tiny_config.decoder, draws_boxes=True)))


@pytest.fixture
def clicking(tiny_config, make_sam):
    """The tiny SAM with drawn boxes and clicks."""
    decoder = replace(tiny_config.decoder, draws_boxes=True, draws_points=True)
    return make_sam(tiny_config.replace(decoder=decoder))


@pytest.fixture
def embeddings(tiny_config):
    return torch.randn(1, 32, tiny_config.grid, tiny_config.grid, generator=torch.Generator().manual_seed(3))


def _box() -> torch.Tensor:
    return torch.tensor([[BOX]])


def _points(*points: tuple[float, float, int]) -> Prompts:
    coords = torch.tensor([[[[x, y] for x, y, _ in points]]])
    return Prompts.build(coords, torch.tensor([[[label for *_, label in points]]]))


def test_a_cell_holds_how_deep_in_the_box_it_lies():
    left, top, right, bottom = BOX
    found = drawn(torch.tensor(BOX[:2]), torch.tensor(BOX[2:]), (32, 24), cell_px=2.0)
    for row in range(32):
        for column in range(24):
            x, y = 2 * column + 1, 2 * row + 1
            depth = min(x - left, right - x, y - top, bottom - y)
            assert found[row, column] == pytest.approx(np.clip(depth, -DEEPEST, DEEPEST))


def test_a_box_is_decoded_as_a_box_with_its_drawing(drawing, tiny_sam, embeddings):
    mask = drawn(_box()[..., :2], _box()[..., 2:], (32, 32), cell_px=2.0)[:, :, None]
    wanted = tiny_sam.decoder.decode(embeddings, Prompts.build(boxes=_box(), masks=mask))
    found = drawing.decoder.decode(embeddings, Prompts.build(boxes=_box()))
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    plain, _ = tiny_sam.decoder.decode(embeddings, Prompts.build(boxes=_box()))
    assert (found[0] - plain).abs().max() > 1e-3


def test_points_are_decoded_without_any(drawing, tiny_sam, embeddings):
    found, wanted = (model.decoder.decode(embeddings, _points((20.0, 30.0, 1))) for model in (drawing, tiny_sam))
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_a_mask_that_is_given_is_not_drawn_over(drawing, tiny_sam, embeddings):
    mask = torch.randn(1, 1, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    found, wanted = (
        model.decoder.decode(embeddings, Prompts.build(boxes=_box(), masks=mask)) for model in (drawing, tiny_sam)
    )
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def test_points_beside_boxes_stay_points(drawing, embeddings):
    box, point = Prompts.build(boxes=_box()), _points((20.0, 30.0, 1))
    both = Prompts(torch.cat([box.coords, point.coords], 1), torch.cat([box.labels, point.labels], 1))
    together, _ = drawing.decoder.decode(embeddings, both)
    for index, alone in enumerate((box, point)):
        torch.testing.assert_close(together[:, index], drawing.decoder.decode(embeddings, alone)[0][:, 0])


def test_prepare_and_predict_answer_boxes_as_decode_does(drawing, embeddings):
    runtime, prompts = TorchRuntime(drawing), Prompts.build(boxes=_box())
    prediction = runtime.predict(runtime.prepare(embeddings), prompts)
    logits = runtime.upscale(prediction, torch.zeros(4, dtype=torch.long), torch.arange(4))
    torch.testing.assert_close(logits, runtime.decode(embeddings, prompts)[0][0, 0])


def test_segment_anything_s_own_predictor_draws_too(drawing, photo):
    ours, theirs = SamPredictor(drawing), TheirPredictor(drawing)
    for predictor in (ours, theirs):
        predictor.set_image(photo)
    box = np.array([20.0, 10.0, 61.0, 42.0])
    _, wanted_iou, wanted = theirs.predict(box=box, multimask_output=False)
    _, iou, logits = ours.predict(box=box, multimask_output=False)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    np.testing.assert_allclose(iou, wanted_iou, atol=1e-5)


def test_a_click_is_decoded_as_a_point_with_a_small_box_around_its_pixel_s_middle(clicking, tiny_sam, embeddings):
    middle = torch.tensor([[[20.5, 30.5]]])
    mask = drawn(middle - CLICK_REACH_PX, middle + CLICK_REACH_PX, (32, 32), cell_px=2.0)[:, :, None]
    for others in ((), ((50.0, 9.0, 1), (3.0, 4.0, 0))):
        asked = _points((20.0, 30.0, 1), *others)
        wanted = tiny_sam.decoder.decode(embeddings, Prompts(asked.coords, asked.labels, mask))
        found = clicking.decoder.decode(embeddings, asked)
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)
        assert (found[0] - tiny_sam.decoder.decode(embeddings, asked)[0]).abs().max() > 1e-3


def test_background_is_no_click_and_a_box_is_drawn_before_one(clicking, drawing, tiny_sam, embeddings):
    outside = _points((20.0, 30.0, 0), (50.0, 9.0, 1))
    found, wanted = (model.decoder.decode(embeddings, outside) for model in (clicking, tiny_sam))
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    both = Prompts.build(torch.tensor([[[[20.0, 30.0]]]]), torch.ones(1, 1, 1, dtype=torch.long), _box())
    found, wanted = (model.decoder.decode(embeddings, both) for model in (clicking, drawing))
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("asked", [[(20.0, 30.0, 1)], [(0.0, 63.0, 1), (5.0, 5.0, 0)], [(9.0, 9.0, 0)]], ids=str)
def test_parts_answer_clicks_as_decode_does(clicking, embeddings, asked):
    runtime, prompts = TorchRuntime(clicking), _points(*asked)
    prediction = runtime.predict(runtime.prepare(embeddings), prompts)
    logits = runtime.upscale(prediction, torch.zeros(4, dtype=torch.long), torch.arange(4))
    torch.testing.assert_close(logits, runtime.decode(embeddings, prompts)[0][0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("labels", [[1], [1, 0], [0, 1]], ids=str)
def test_segment_anything_s_own_predictor_draws_clicks_too(clicking, photo, labels):
    ours, theirs = SamPredictor(clicking), TheirPredictor(clicking)
    for predictor in (ours, theirs):
        predictor.set_image(photo)
    given = {"point_coords": np.array([[20.0, 10.0], [61.0, 42.0]])[: len(labels)], "point_labels": np.array(labels)}
    _, wanted_iou, wanted = theirs.predict(**given)
    _, iou, logits = ours.predict(**given)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    np.testing.assert_allclose(iou, wanted_iou, atol=1e-5)


def test_segment_anything_s_generator_draws_clicks_and_finds_what_ours_does(clicking, photo):
    options = {"points_per_side": 4, "pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    theirs = TheirGenerator(clicking, **options).generate(photo)
    ours = EverythingGenerator(clicking, **options).generate(photo)
    assert len(theirs) == len(ours) > 0
    assert sorted(record["area"] for record in theirs) == sorted(record["area"] for record in ours)
