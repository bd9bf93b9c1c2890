"""sam_edge.training.colour: colours change within bounds, and only by the generator."""

import colorsys

import numpy as np
import pytest

from sam_edge.training.colour import MAX_NOISE, degrade, recolour


def grey(level: int) -> np.ndarray:
    return np.full((20, 30, 3), level, np.uint8)


def test_no_change_is_no_change(photo):
    rng = np.random.default_rng(0)
    assert recolour(photo, 0.0, rng) is photo
    assert degrade(photo, 0.0, rng) is photo


def test_grey_stays_grey_and_moves_by_the_amount():
    levels = [recolour(grey(100), 0.2, np.random.default_rng(seed)) for seed in range(60)]
    for image in levels:
        assert np.ptp(image.astype(int), axis=-1).max() <= 1
        assert 79 <= image.min() <= image.max() <= 121
    assert np.std([image.mean() for image in levels]) > 5


def test_hue_turns_by_at_most_the_amount_and_both_ways():
    # a green, whose neighbours' hues do not wrap around
    image = np.full((4, 4, 3), (80, 150, 90), np.uint8)
    hue = colorsys.rgb_to_hsv(80, 150, 90)[0]
    turns = []
    for seed in range(60):
        red, green, blue = recolour(image, 0.3, np.random.default_rng(seed)).reshape(-1, 3).mean(0)
        turns.append(2 * np.pi * (colorsys.rgb_to_hsv(red, green, blue)[0] - hue))
    # hexagonal and circular hue differ by a little
    assert max(np.abs(turns)) < 0.3 * 1.25
    assert min(turns) < -0.1
    assert max(turns) > 0.1


def test_contrast_is_about_the_mean(photo):
    # far from black and white, nothing is clipped and the mean can only follow the brightness
    soft = (photo // 4 + 90).astype(np.uint8)
    spreads, means = [], []
    for seed in range(40):
        changed = recolour(soft, 0.2, np.random.default_rng(seed)).mean(-1)
        spreads.append(changed.std() / soft.mean(-1).std())
        means.append(changed.mean() / soft.mean())
    assert 0.62 < min(spreads) < 0.9
    assert 1.1 < max(spreads) < 1.46
    assert 0.78 < min(means) < max(means) < 1.22


@pytest.mark.parametrize("chance", [0.3, 1.0])
def test_each_damage_comes_as_often_as_asked(photo, chance):
    found = np.array([damage(photo, degrade(photo, chance, np.random.default_rng(seed))) for seed in range(150)])
    assert found.mean() == pytest.approx(chance, abs=0.1)


def damage(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the colours are gone."""
    assert after.dtype == np.uint8
    assert after.shape == before.shape
    # noise is drawn for each colour apart
    return bool(np.ptp(after.astype(int), axis=-1).mean() < 2 * MAX_NOISE)


def test_the_picture_given_is_left_alone(photo):
    before = photo.copy()
    for seed in range(10):
        degrade(recolour(photo, 0.3, np.random.default_rng(seed)), 1.0, np.random.default_rng(seed))
    assert np.array_equal(photo, before)
