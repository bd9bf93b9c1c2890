"""sam_edge.evaluate.clicks: each click goes where the mask is most wrong, and a helpful model gets better by it."""

import numpy as np
import pytest

from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.errors import DataError
from sam_edge.evaluate.clicks import evaluate_clicks, next_click
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import Runtime

SIZE = 64


class Pictures(LabelledDataset):
    """Pictures with three nested squares each."""

    def __init__(self, count):
        self.count = count

    @property
    def names(self):
        return [str(index) for index in range(self.count)]

    def __getitem__(self, index):
        masks = []
        for side in (16, 32, 56):
            mask = np.zeros((SIZE, SIZE), bool)
            mask[4 : 4 + side, 4 : 4 + side] = True
            masks.append(Annotation.from_mask(mask))
        return LabelledImage(str(index), np.zeros((SIZE, SIZE, 3), np.uint8), tuple(masks))


class Obedient(Runtime):
    """A runtime whose mask is a disc around each foreground click, minus one around each background click."""

    name = "obedient"

    def __init__(self, config, radius):
        self.config, self.radius, self.asked = config, radius, []

    def encode(self, pixels):
        return None

    def decode(self, embeddings, prompts):
        self.asked.append(prompts)
        cells = self.config.mask_size
        ys, xs = np.mgrid[:cells, :cells]
        at = (np.stack([xs, ys], -1) + 0.5) * (SIZE / cells) - 0.5
        distance = np.linalg.norm(at[None, None] - prompts.coords[0, :, :, None, None], axis=-1)
        near, labels = distance <= self.radius, prompts.labels[0, :, :, None, None]
        mask = (near & (labels == 1)).any(1) & ~(near & (labels == 0)).any(1)
        logits = np.where(mask, np.float32(8), np.float32(-8))[None, :, None].repeat(4, 2)
        return logits, np.ones(logits.shape[:3], np.float32)


def plain_next_click(mask, wanted):
    """The protocol pixel by pixel: of each wrong pixel, how far away the nearest one is that is not wrong alike."""
    height, width = wanted.shape
    best, found = -1, None
    for label, region in ((1, wanted & ~mask), (0, mask & ~wanted)):
        for y in range(height):
            for x in range(width):
                if region[y, x]:
                    outside = [
                        (y - row) ** 2 + (x - column) ** 2
                        for row in range(-1, height + 1)
                        for column in range(-1, width + 1)
                        if not (0 <= row < height and 0 <= column < width and region[row, column])
                    ]
                    if min(outside) > best:
                        best, found = min(outside), ((x, y), label)
    return found


def test_the_next_click_is_the_plain_loops():
    rng = np.random.default_rng(5)
    for _ in range(12):
        coarse = rng.random((2, 5, 6)) < 0.5
        mask, wanted = coarse.repeat(3, 1).repeat(3, 2) ^ (rng.random((2, 15, 18)) < 0.05)
        assert next_click(mask, wanted) == plain_next_click(mask, wanted)


def plain_clicks(runtime, sample, annotation, clicks):
    """The whole protocol for one mask, by segment-anything's own interface."""
    predictor = SamPredictor(runtime)
    predictor.set_image(sample.image)
    wanted = annotation.mask()
    points, labels, low_res, scores = [annotation.point_xy], [1], None, []
    for _ in range(clicks):
        masks, _, low_res = predictor.predict(
            np.array(points), np.array(labels), mask_input=low_res, multimask_output=False
        )
        scores.append((masks[0] & wanted).sum() / (masks[0] | wanted).sum())
        point, label = next_click(masks[0], wanted)
        points.append(point)
        labels.append(label)
    return scores


def test_nine_points_are_the_plain_loops(tiny_config):
    runtime, pictures = Obedient(tiny_config, radius=9), Pictures(1)
    plain = [plain_clicks(runtime, pictures[0], annotation, 9) for annotation in pictures[0].annotations]
    found = evaluate_clicks(Obedient(tiny_config, radius=9), pictures, clicks=9)
    np.testing.assert_allclose(found.miou, np.mean(plain, 0), atol=1e-12)


class Doubtful(Obedient):
    """Of three masks the last is the best predicted one and twice as large; the single one is the small one."""

    def decode(self, embeddings, prompts):
        small, _ = super().decode(embeddings, prompts)
        self.asked.pop()
        self.radius *= 2
        large, iou = super().decode(embeddings, prompts)
        self.radius /= 2
        iou[..., 3] = 2
        return np.concatenate([small[:, :, :3], large[:, :, 3:]], 2), iou


def test_of_three_masks_the_first_click_takes_the_best_predicted_one(tiny_config):
    single = evaluate_clicks(Doubtful(tiny_config, radius=9), Pictures(1), clicks=2)
    three = evaluate_clicks(Doubtful(tiny_config, radius=9), Pictures(1), clicks=2, multimask=True)
    twice = evaluate_clicks(Obedient(tiny_config, radius=18), Pictures(1), clicks=1)
    assert three.miou[0] == twice.miou[0] != single.miou[0]


def test_the_next_click_is_put_inside_the_deeper_error():
    wanted = np.zeros((40, 40), bool)
    wanted[5:35, 5:25] = True
    mask = np.zeros_like(wanted)
    mask[5:15, 5:40] = True
    (x, y), label = next_click(mask, wanted)
    assert label == 1
    assert (wanted & ~mask)[y, x]
    mask[:, 5:] = True
    (x, y), label = next_click(mask, wanted)
    assert label == 0
    assert (mask & ~wanted)[y, x]
    (x, y), label = next_click(wanted, wanted)
    assert label == 1
    assert wanted[y, x]


def test_each_round_sees_all_clicks_so_far_and_the_mask_before(tiny_config):
    runtime = Obedient(tiny_config, radius=8)
    result = evaluate_clicks(runtime, Pictures(1), clicks=3)
    assert [asked.labels.shape[2] - 1 for asked in runtime.asked] == [1, 2, 3]
    assert [asked.masks is None for asked in runtime.asked] == [True, False, False]
    assert runtime.asked[2].coords.dtype == np.float32
    np.testing.assert_allclose(
        runtime.asked[2].coords[:, :, :2], runtime.asked[1].coords[:, :, :2], rtol=1.3e-6, atol=1e-5
    )
    assert result.masks == 3
    assert len(result.miou) == 3


def test_clicks_help_a_model_that_follows_them(tiny_config):
    result = evaluate_clicks(Obedient(tiny_config, radius=10), Pictures(2), clicks=5)
    assert result.miou[4] > result.miou[0] + 0.1
    assert (result.images, result.masks, result.skipped) == (2, 6, 0)


def test_batches_change_nothing(tiny_config):
    whole = evaluate_clicks(Obedient(tiny_config, 9), Pictures(1), clicks=3)
    assert evaluate_clicks(Obedient(tiny_config, 9), Pictures(1), clicks=3, prompts_per_batch=2) == whole


def test_no_clicks_are_refused(tiny_config):
    with pytest.raises(DataError, match="at least 1"):
        evaluate_clicks(Obedient(tiny_config, 9), Pictures(1), clicks=0)
