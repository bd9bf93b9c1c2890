"""sam_edge.kernels.gelu: the compiled kernels against the same in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_edge.kernels.gelu import Grid, gelu_of_integers, gelu_to_integers, reference
from sam_edge.kernels.library import LEVELS, library

kernels = library()
pytestmark = pytest.mark.skipif(kernels is None, reason="sam-edge was installed without a compiler")
FLOAT_LEVELS = LEVELS[: 1 + kernels.sam_edge_best_level(0)] if kernels else ()
grids = st.builds(Grid, st.floats(1e-3, 0.5), st.integers(0, 255))


def torn(y: np.ndarray, to: Grid) -> np.ndarray:
    """Whether a value is so near the middle between two integers that float32 may round it to either."""
    steps = y / to.step
    return np.abs(steps - np.floor(steps) - 0.5) < 1e-5 * np.maximum(1, np.abs(steps)) + 2e-6 / to.step


def agree(found: np.ndarray, y: np.ndarray, to: Grid) -> None:
    wanted = to.rounded(y)
    differ = found != wanted
    assert not (differ & ~torn(y, to)).any()
    assert np.abs(found[differ].astype(int) - wanted[differ]).max(initial=0) <= 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(step=grids, to=grids, count=st.integers(0, 300), seed=st.integers(0, 99))
def test_integers_become_integers(step: Grid, to: Grid, count: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    agree(gelu_of_integers(x, step, to), reference(step.values(x)), to)


def test_every_integer_has_its_own_value() -> None:
    """In blocks of the widest instructions, and one by one behind them."""
    step, to = Grid(0.04, 131), Grid(0.02, 9)
    x = np.tile(np.arange(256, dtype=np.uint8), 3)[:-5].reshape(-1)
    agree(gelu_of_integers(x, step, to), reference(step.values(x)), to)


@pytest.mark.parametrize("level", FLOAT_LEVELS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    to=grids,
    rows=st.integers(0, 5),
    channels=st.integers(1, 70),
    spread=st.sampled_from((0.1, 2.0, 30.0)),
    seed=st.integers(0, 99),
)
def test_sums_become_integers(to: Grid, rows: int, channels: int, spread: float, seed: int, level: str) -> None:
    rng = np.random.default_rng(seed)
    x = (spread * rng.standard_normal((rows, channels))).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    agree(gelu_to_integers(x, bias, to, level=level), reference((x + bias).astype(np.float64)), to)


@pytest.mark.parametrize("level", FLOAT_LEVELS)
@pytest.mark.parametrize("to", [Grid(9 / 255, 0), Grid(1e-3, 200), Grid(1e-5, 128)], ids=str)
def test_it_is_right_everywhere(to: Grid, level: str) -> None:
    """On a grid of all values, on one of those below zero, and on one so fine that its steps are ten errors."""
    x = np.linspace(-9, 9, 20001, dtype=np.float32)
    found = gelu_to_integers(x[None], np.zeros(len(x), np.float32), to, level=level)[0]
    agree(found, reference(x.astype(np.float64)), to)


@pytest.mark.parametrize("level", FLOAT_LEVELS)
def test_what_is_far_away_is_cut_off(level: str) -> None:
    x = np.array([[-np.inf, -1e30, 1e30, np.inf, np.nan]], np.float32)
    found = gelu_to_integers(x, np.zeros(5, np.float32), Grid(0.1, 10), level=level)
    assert found.tolist() == [[10, 10, 255, 255, 0]]


def test_a_bias_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="as many channels"):
        gelu_to_integers(np.zeros((2, 3), np.float32), np.zeros(2, np.float32), Grid(1, 0))
