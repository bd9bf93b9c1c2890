"""sam_edge.segment.calibrate: tau skips what it may, and the thresholds keep the share asked for."""

import numpy as np
import pytest

from sam_edge.errors import EverythingError
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.segment.calibrate import CalibrateOptions, calibrate
from sam_edge.segment.config import COVERAGES, Thresholds
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.matching import as_rle, best_ious
from sam_edge.segment.observed import ObservedRuntime

OPEN = Thresholds(pred_iou=-1.0, stability=0.0)


@pytest.fixture
def runtime(tiny_config, make_sam) -> ObservedRuntime:
    return ObservedRuntime(TorchRuntime(make_sam(tiny_config.replace(thresholds=OPEN), seed=3)))


@pytest.fixture
def pictures(photo) -> list[np.ndarray]:
    return [photo, photo[::-1].copy(), photo[:, 20:].copy()]


def both(runtime, image: np.ndarray, thresholds: Thresholds) -> tuple[float, float]:
    """Share of points that the hierarchy skips, and its loss of agreement with the grid."""
    options = {"points_per_side": 8, "pred_iou_thresh": thresholds.pred_iou, "tau": thresholds.tau}
    options |= {"stability_score_thresh": thresholds.stability, "coverage": thresholds.coverage}
    options["output_mode"] = "coco_rle"
    grid = EverythingGenerator(runtime, **options).generate(image)
    runtime.reset()
    found = EverythingGenerator(runtime, **options, strategy="hierarchical").generate(image)
    loss = 1 - best_ious([as_rle(record) for record in grid], found).mean() if grid else 0.0
    return 1 - runtime.points / 64, loss


@pytest.mark.parametrize("coverage", COVERAGES)
def test_tau_by_cover_covers_that_share(runtime, pictures, coverage):
    found = calibrate(runtime, pictures, CalibrateOptions(8, covered=0.5, coverage=coverage))
    assert found.thresholds.coverage == coverage
    skipped = [both(runtime, image, found.thresholds)[0] for image in pictures]
    assert found.skipped == pytest.approx(np.mean(skipped))
    # covered points of the first pass were asked all the same
    assert 0.5 - 4 / 64 - 0.02 <= found.skipped <= 0.5
    assert (found.thresholds.pred_iou, found.thresholds.stability) == (OPEN.pred_iou, OPEN.stability)
    assert (found.loss, found.photos, found.survivors) == (None, 3, 1.0)


def test_nested_is_the_model_s_own_unless_given(tiny_config, make_sam, pictures):
    model = make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=-1.0, stability=0.0, nested=0.7)))
    options = (CalibrateOptions(8, covered=0.5), CalibrateOptions(8, covered=0.5, nested=0.9))
    own, given = (calibrate(model, pictures, one).thresholds for one in options)
    assert (own.nested, given.nested) == (0.7, 0.9)
    assert own.tau == given.tau


@pytest.mark.parametrize("coverage", COVERAGES)
def test_tau_within_a_loss_does_what_it_says(runtime, pictures, coverage):
    options = [CalibrateOptions(8, max_loss=loss, coverage=coverage) for loss in (0.0, 0.9)]
    strict, lax = (calibrate(runtime, pictures, one) for one in options)
    assert strict.loss == 0.0
    assert strict.thresholds.tau >= lax.thresholds.tau
    assert strict.skipped <= lax.skipped
    assert lax.skipped > 0
    for found in (strict, lax):
        measured = np.mean([both(runtime, image, found.thresholds) for image in pictures], 0)
        assert measured[0] == pytest.approx(found.skipped)
        # masks are compared at low resolution, and not at the pictures'
        assert measured[1] == pytest.approx(found.loss, abs=0.05)


def test_thresholds_by_quantile_keep_the_share_asked_for(tiny_config, make_sam, pictures):
    # a model whose predicted IoU is positive
    model = make_sam(tiny_config, seed=3)
    model.mask_decoder.iou_prediction_head.layers[-1].bias.data += 3.0
    found = calibrate(model, pictures, CalibrateOptions(16, covered=0.2, survivors=0.5))
    assert found.survivors == pytest.approx(0.5, abs=0.1)
    assert found.thresholds.pred_iou > 0


def test_what_cannot_be_calibrated_is_refused_in_one_line(tiny_config, make_sam, runtime, pictures):
    with pytest.raises(EverythingError, match="at least one photo"):
        calibrate(runtime, [], CalibrateOptions(8))
    closed = make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=99.0)))
    with pytest.raises(EverythingError, match="lower the model's thresholds"):
        calibrate(closed, pictures, CalibrateOptions(8))
    negative = make_sam(tiny_config)
    negative.mask_decoder.iou_prediction_head.layers[-1].bias.data -= 99.0
    with pytest.raises(EverythingError, match="ask for fewer survivors"):
        calibrate(negative, pictures, CalibrateOptions(8, survivors=0.5))


@pytest.mark.parametrize(
    "options",
    [
        {"covered": 0.0},
        {"covered": 1.0},
        {"survivors": 1.5},
        {"nested": 0.0},
        {"nested": 1.5},
        {"max_loss": -0.1},
        {"points_per_side": 0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(EverythingError, match="must be"):
        CalibrateOptions(**options)
