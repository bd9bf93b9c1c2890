"""sam_edge.evaluate.clicks: each click goes where the mask is most wrong, and a helpful model gets better by it."""

import numpy as np
import pytest

from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.errors import DataError
from sam_edge.evaluate.clicks import evaluate_clicks, next_click
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


def test_the_next_click_is_put_inside_the_larger_error():
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
