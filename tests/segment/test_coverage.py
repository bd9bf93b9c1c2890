"""sam_edge.segment.coverage: a large mask answers points where the picture is flat; any mask, by the paper's rule."""

import numpy as np
import pytest
from segment_anything.utils.amg import build_point_grid

from sam_edge.errors import EverythingError
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.segment.budget import Budget
from sam_edge.segment.config import Thresholds
from sam_edge.segment.coverage import NOISE, USUAL
from sam_edge.segment.crop_walk import CropWalk, Filters
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.observed import ObservedRuntime
from sam_edge.segment.upscaled import OnHost

SIDE, POINTS = 64, 8


@pytest.fixture
def picture() -> np.ndarray:
    """Grey on the left, noise on the right."""
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    picture[:, SIDE // 2 :] = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE // 2, 3), dtype=np.uint8)
    return picture


def test_coverage_by_contrast_needs_a_large_mask_and_a_flat_picture(tiny_config, make_sam, picture):
    grid = build_point_grid(POINTS)
    budget = Budget.of(tiny_config, len(grid), 64, 2**30)
    walk = CropWalk(
        TorchRuntime(make_sam(tiny_config)), picture, (0, 0, SIDE, SIDE), grid, Filters(-1, 0, 1, 0.7), budget
    )
    cells = tiny_config.mask_size
    everywhere, speck = (np.full((1, cells, cells), logit, np.float32) for logit in (3.0, -1.0))
    speck[:, : cells // 4, : cells // 4] = 9.0
    both, everywhere, speck = (
        OnHost(logits, walk.scaling) for logits in (np.concatenate([everywhere, speck]), everywhere, speck)
    )
    by_logit = walk.confidence(both, "logit")
    assert by_logit.max() == pytest.approx(9.0)
    assert by_logit.min() == pytest.approx(3.0)
    np.testing.assert_array_equal(walk.confidence(both, "contrast"), walk.confidence(everywhere, "contrast"))
    assert np.isneginf(walk.confidence(speck, "contrast")).all()
    # a float64 loop over the picture's own pixels: here a cell is 8 x 8 of them
    for point, found in zip(grid, walk.confidence(everywhere, "contrast").tolist(), strict=True):
        x, y = (int(coordinate * POINTS) * SIDE // POINTS for coordinate in point)
        contrast = (picture[y : y + 8, x : x + 8] / 255).std((0, 1)).mean()
        assert found == pytest.approx(3.0 - np.log((contrast + NOISE) / USUAL), abs=1e-4)


def test_a_model_brings_its_rule_along_and_an_argument_comes_first(tiny_config, make_sam, picture):
    thresholds = Thresholds(pred_iou=-10.0, stability=0.0, tau=0.0, coverage="contrast")
    runtime = ObservedRuntime(TorchRuntime(make_sam(tiny_config.replace(thresholds=thresholds))))
    asked = []
    for options in ({}, {"coverage": "contrast"}, {"coverage": "logit"}):
        runtime.reset()
        EverythingGenerator(runtime, POINTS, strategy="hierarchical", **options).generate(picture)
        asked.append(runtime.points)
    assert asked[0] == asked[1] != asked[2]
    with pytest.raises(EverythingError, match="coverage must be logit or contrast"):
        EverythingGenerator(runtime, POINTS, strategy="hierarchical", coverage="colour")
