"""sam_edge.evaluate.miou: oracles score one, emptiness zero, and prompts arrive where they should."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.errors import DataError
from sam_edge.evaluate.miou import Asked, evaluate_miou, evaluate_prompts, inscribed_ellipse, iou
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Runtime

SIZE = 64


class Samples(LabelledDataset):
    """Labelled images at hand; None stands for a file that cannot be read."""

    def __init__(self, samples: list[LabelledImage | None]) -> None:
        self.samples = samples

    @property
    def names(self) -> list[str]:
        return [str(index) for index in range(len(self.samples))]

    def __getitem__(self, index: int) -> LabelledImage:
        sample = self.samples[index]
        if sample is None:
            raise DataError("broken")
        return sample


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    """A disc."""
    ys, xs = np.mgrid[:height, :width]
    return (xs - x) ** 2 + (ys - y) ** 2 <= radius**2


def square(height: int, width: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A rectangle, ends excluded."""
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def labelled(*masks: np.ndarray) -> LabelledImage:
    """A grey picture whose red channel says which of the masks lies where."""
    image = np.full((*masks[0].shape, 3), 90, np.uint8)
    return LabelledImage("picture", image, tuple(Annotation.from_mask(mask) for mask in masks))


@pytest.fixture
def data() -> Samples:
    """Two pictures, of three masks and of one; the second is wide."""
    first = labelled(disc(96, 128, 30, 30, 18), square(96, 128, 70, 10, 110, 50), square(96, 128, 20, 60, 100, 90))
    return Samples([first, labelled(disc(60, 120, 60, 30, 20))])


@dataclass
class Fake(Runtime):
    """A runtime whose masks are drawn by `draw(image number, set number)` -> four masks at the picture's size.

    It records the prompts that it is given.
    """

    config: ModelConfig
    data: Samples
    masks: object
    iou: tuple[float, float, float, float] = (0.9, 0.2, 0.5, 0.4)
    name: str = "fake"
    images: int = 0
    asked: list[Prompts] = field(default_factory=list)
    answered: int = 0

    def encode(self, pixels):
        self.images += 1
        self.answered = 0
        assert pixels.shape == (1, 3, SIZE, SIZE)
        return self.images - 1

    def decode(self, number, prompts):
        self.asked.append(prompts)
        readable = [sample for sample in self.data.samples if sample is not None and sample.annotations]
        sample, found = readable[number], []
        for _ in range(prompts.labels.shape[1]):
            # asked once more, it begins at the first again
            wanted = sample.annotations[self.answered % len(sample.annotations)].mask()
            self.answered += 1
            found.append(np.stack([self._low_res(mask) for mask in self.masks(wanted)]))
        scores = np.tile(np.array(self.iou, np.float32), (1, len(found), 1))
        return np.stack(found)[None], scores

    def _low_res(self, mask: np.ndarray) -> np.ndarray:
        """Signed logits on the grid of low-resolution masks."""
        height, width = mask.shape
        cells = self.config.mask_size
        at = (np.arange(cells) + 0.5) * max(height, width) / cells
        rows, columns = at.astype(int).clip(0, height - 1), at.astype(int).clip(0, width - 1)
        return np.where(mask[np.ix_(rows, columns)], np.float32(8), np.float32(-8))


def oracle(wanted):
    return [wanted] * 4


def empty(wanted):
    return [np.zeros_like(wanted)] * 4


@pytest.mark.parametrize("prompt", ["point", "box"])
@pytest.mark.parametrize("multimask", [True, False], ids=["three", "single"])
def test_an_oracle_scores_nearly_one_and_emptiness_zero(tiny_config, data, prompt, multimask):
    # cells are four pixels wide here: an oracle loses little of edges
    best = evaluate_miou(Fake(tiny_config, data, oracle), data, prompt=prompt, multimask=multimask)
    assert 0.9 < best.miou <= 1
    worst = evaluate_miou(Fake(tiny_config, data, empty), data, prompt=prompt, multimask=multimask)
    assert worst.miou == worst.miou_per_image == 0
    assert (best.masks, best.images, best.skipped) == (4, 2, 0)


def test_the_mean_over_masks_is_not_the_mean_over_images(tiny_config):
    # picture one: three whole masks; picture two: one half mask
    first = labelled(*(square(64, 64, x, 8, x + 16, 56) for x in (0, 16, 32)))
    second = labelled(square(64, 64, 0, 0, 64, 64))
    data = Samples([first, second])

    def masks(wanted):
        return [wanted & (np.arange(64) < 32) if wanted.all() else wanted] * 4

    result = evaluate_miou(Fake(tiny_config, data, masks), data)
    assert result.miou == pytest.approx((1 + 1 + 1 + 0.5) / 4, abs=0.02)
    assert result.miou_per_image == pytest.approx((1 + 0.5) / 2, abs=0.02)


def test_of_three_masks_the_one_of_highest_predicted_iou_is_taken(tiny_config):
    data = Samples([labelled(square(64, 64, 0, 0, 64, 64))])

    def masks(wanted):
        return [wanted & (np.arange(64) < width) for width in (0, 16, 32, 64)]

    runtime = Fake(tiny_config, data, masks, iou=(0.99, 0.1, 0.7, 0.3))
    three = evaluate_miou(runtime, data, multimask=True)
    assert three.miou == pytest.approx(0.5, abs=0.02)
    assert three.miou_best_of_three == pytest.approx(1.0)
    assert three.iou_error == pytest.approx(abs(0.7 - three.miou))
    # the single mask is the first of the four, whatever the others promise
    single = evaluate_miou(Fake(tiny_config, data, masks, iou=(0.2, 0.9, 0.9, 0.9)), data)
    assert single.miou == 0
    assert single.miou_best_of_three is None
    assert single.iou_error == pytest.approx(0.2)


@pytest.mark.parametrize("size", [(96, 128), (60, 120), (50, 17)], ids=str)
def test_points_and_boxes_reach_the_runtime_in_its_own_frame(tiny_config, size):
    height, width = size
    mask = square(height, width, width // 4, height // 3, width // 2, height - 5)
    data = Samples([labelled(mask)])
    scale = SIZE / max(size)
    for prompt in ("point", "box"):
        runtime = Fake(tiny_config, data, oracle)
        evaluate_miou(runtime, data, prompt=prompt)
        (asked,) = runtime.asked
        assert (asked.coords.dtype, asked.labels.dtype) == (np.float32, np.int64)
        coords, labels = asked.coords[0, 0], asked.labels[0, 0].tolist()
        if prompt == "box":
            assert labels == [2, 3]
            wanted = [[width // 4, height // 3], [width // 2, height - 5]]
            np.testing.assert_allclose(coords, np.array(wanted) * scale, atol=0.5)
        else:
            assert labels == [1, -1]
            x, y = coords[0] / scale
            assert mask[round(float(y)), round(float(x))]
            np.testing.assert_allclose(coords[0], np.array(data[0].annotations[0].point_xy) * scale, atol=0.5)
        assert asked.masks is None


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_the_batch_of_prompts_changes_nothing(tiny_config, data, batch):
    runtime = Fake(tiny_config, data, oracle)
    result = evaluate_miou(runtime, data, prompts_per_batch=batch)
    assert result == evaluate_miou(Fake(tiny_config, data, oracle), data)
    assert max(asked.labels.shape[1] for asked in runtime.asked) == min(batch, 3)
    # each picture is encoded once
    assert runtime.images == 2


def test_several_ways_to_ask_share_one_encoding_and_score_as_each_alone(tiny_config, data):
    def masks(wanted):
        return [wanted & (np.arange(wanted.shape[1]) < width) for width in (24, 16, 64, 32)]

    asked = [Asked("box"), Asked("point"), Asked("point", multimask=True)]
    runtime = Fake(tiny_config, data, masks)
    together = evaluate_prompts(runtime, data, asked)
    assert runtime.images == 2
    alone = [
        evaluate_miou(Fake(tiny_config, data, masks), data, prompt=how.prompt, multimask=how.multimask) for how in asked
    ]
    assert together == alone
    assert together[0].miou != together[2].miou


def test_the_ellipse_is_counted_as_by_hand():
    rng = np.random.default_rng(3)
    for _ in range(5):
        x0, y0 = (int(v) for v in rng.integers(0, 20, 2))
        x1, y1 = x0 + int(rng.integers(1, 25)), y0 + int(rng.integers(1, 15))
        annotation = Annotation.from_mask(square(40, 50, x0, y0, x1, y1))
        wanted = np.zeros((40, 50), bool)
        for row in range(40):
            for column in range(50):
                dx = (column + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
                dy = (row + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
                wanted[row, column] = dx * dx + dy * dy <= 1
        np.testing.assert_array_equal(inscribed_ellipse(annotation, 40, 50), wanted)
        assert wanted.any()


def test_the_ellipse_is_reported_for_boxes_alone(tiny_config):
    data = Samples([labelled(disc(64, 64, 30, 30, 20)), labelled(square(64, 64, 5, 5, 45, 45))])
    by_box = evaluate_miou(Fake(tiny_config, data, empty), data, prompt="box")
    # a disc is its own ellipse; of a square it covers pi / 4
    assert by_box.miou_ellipse == pytest.approx((1 + np.pi / 4) / 2, abs=0.02)
    assert evaluate_miou(Fake(tiny_config, data, empty), data, prompt="point").miou_ellipse is None


def test_iou_is_counted():
    a, b = square(4, 4, 0, 0, 2, 4), square(4, 4, 1, 0, 4, 4)
    assert iou(a, b) == 4 / 16
    assert iou(a, a) == 1
    assert iou(a, ~a) == 0
    assert iou(np.zeros((4, 4), bool), np.zeros((4, 4), bool)) == 1


@pytest.mark.filterwarnings("ignore:skipped 1 of 4 unreadable")
def test_broken_files_are_counted_and_pictures_without_masks_do_not_matter(tiny_config, data):
    bare = LabelledImage("bare", np.zeros((64, 64, 3), np.uint8), ())
    mixed = Samples([data[0], None, bare, data[1]])
    seen = []
    result = evaluate_miou(Fake(tiny_config, mixed, oracle), mixed, on_image=lambda: seen.append(1))
    assert (result.skipped, result.images, result.masks, len(seen)) == (1, 2, 4, 3)
    assert result.miou == evaluate_miou(Fake(tiny_config, data, oracle), data).miou


def test_no_masks_at_all_is_an_error(tiny_config):
    data = Samples([LabelledImage("bare", np.zeros((64, 64, 3), np.uint8), ())])
    for nothing in (data, Samples([])):
        with pytest.raises(DataError, match="no masks to evaluate on: check --data and --split"):
            evaluate_miou(Fake(tiny_config, nothing, oracle), nothing)


def test_real_weights_score_as_their_own_predictor_does(tiny_config, make_sam, data):
    from sam_edge.models.torch_runtime import TorchRuntime
    from sam_edge.segment.predictor import SamPredictor

    runtime = TorchRuntime(make_sam(tiny_config))
    predictor, scores = SamPredictor(runtime), []
    for sample in data:
        predictor.set_image(sample.image)
        for annotation in sample.annotations:
            masks, predicted, _ = predictor.predict(np.array([annotation.point_xy]), np.array([1]))
            scores.append(iou(masks[predicted.argmax()], annotation.mask()))
    assert evaluate_miou(runtime, data, multimask=True).miou == pytest.approx(np.mean(scores), abs=1e-3)


def test_reliability_sets_promises_beside_what_was_kept(tiny_config):
    data = Samples([labelled(square(64, 64, 0, 0, 64, 64), square(64, 64, 0, 0, 32, 64))])

    def masks(wanted):
        return [wanted & (np.arange(64) < 32)] * 4

    result = evaluate_miou(Fake(tiny_config, data, masks, iou=(0.83, 0, 0, 0)), data)
    (only,) = result.reliability
    assert only.predicted == pytest.approx(0.83)
    assert only.actual == pytest.approx(0.75, abs=0.02)
    assert only.masks == 2
