"""sam_edge.kernels.attention: the compiled kernel against the same in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_edge.errors import BackendUnavailableError
from sam_edge.kernels.attention import attention, biased_attention, biased_reference, reference, work
from sam_edge.kernels.library import LEVELS, library

kernels = library()
pytestmark = pytest.mark.skipif(kernels is None, reason="sam-edge was installed without a compiler")
HERE = LEVELS[: 1 + kernels.sam_edge_best_level(1)] if kernels else ()
"""What this processor can do, and all that is below it."""
SAM = {
    "SAM-B's window": (2, 2, 14, 14, 64, 64),
    "SlimSAM-77's window": (2, 3, 14, 14, 14, 14),
    "nano's window": (3, 5, 8, 8, 32, 32),
    "nano's whole grid": (1, 1, 32, 32, 32, 32),
    "SlimSAM-77's whole grid": (1, 1, 64, 64, 14, 14),
    "ViT-H's width": (1, 1, 20, 20, 80, 80),
}


ROUNDED = LEVELS[-1]
LN_2 = float(np.log(2))
"""A scale that cancels the kernel's log2(e): q is what is rounded, and numbers of 8 bits stay as they are."""


def operands(
    batch: int, heads: int, height: int, width: int, qk: int, v: int, *, spread: float = 1.0, seed: int = 0
) -> list[np.ndarray]:
    """q, k, v and both tables of normal values, `spread` apart."""
    rng = np.random.default_rng(seed)
    lead = (batch, heads, height * width)
    shapes = ((*lead, qk), (*lead, qk), (*lead, v), (2 * height - 1, qk), (2 * width - 1, qk))
    return [(spread * rng.standard_normal(shape)).astype(np.float32) for shape in shapes]


def of_8_bits(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def exact(arrays: list[np.ndarray], scale: float, step: int = 1) -> np.ndarray:
    return reference(*(x.astype(np.float64) for x in arrays), scale, step=step)


def largest_error(arrays: list[np.ndarray], scale: float, step: int = 1, **options: object) -> float:
    """Of every `step`-th query, relative to the largest value."""
    found = attention(*arrays, scale, **options)[:, :, ::step]
    return float(np.abs(found - exact(arrays, scale, step)).max() / np.abs(arrays[2]).max())


def rounding(level: str) -> float:
    """Half a step of bfloat16 on each weight, and as much by its exponential and sum."""
    return 2**-8 if level == ROUNDED else 0


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("sizes", SAM.values(), ids=SAM)
def test_it_is_the_reference_in_the_sizes_of_sam(sizes: tuple[int, ...], level: str) -> None:
    step = 7 if sizes[2] == 64 else 1
    # beside the weights, q, k and v are rounded to 8 bits
    most = 0.02 if level == ROUNDED else 5e-6
    assert largest_error(operands(*sizes, spread=0.7), sizes[4] ** -0.5, step, threads=2, level=level) < most


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (2, 2, 21, 21, 80, 80))),
    threads=st.integers(1, 4),
    spread=st.sampled_from((0.1, 1.0, 5.0)),
    seed=st.integers(0, 99),
)
def test_it_is_the_reference_in_any_size(
    sizes: tuple[int, ...], threads: int, spread: float, seed: int, level: str
) -> None:
    *tokens, rel_pos_h, rel_pos_w = operands(*sizes, spread=spread, seed=seed)
    arrays = [*map(of_8_bits, tokens), rel_pos_h, rel_pos_w]
    # the error of a score goes with its size: up to 3 x 5 x 5 x 80
    most = 1e-5 * max(1, spread**2) + rounding(level)
    assert largest_error(arrays, LN_2, threads=threads, level=level) < most


@pytest.mark.parametrize("level", HERE)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (2, 2, 440, 80, 80))),
    spread=st.sampled_from((0.1, 1.0, 5.0)),
    seed=st.integers(0, 99),
)
def test_a_bias_of_each_pair_is_added_in_any_size(sizes: tuple[int, ...], spread: float, seed: int, level: str) -> None:
    batch, heads, tokens, qk, v = sizes
    rng = np.random.default_rng(seed)
    shapes = [(batch, heads, tokens, width) for width in (qk, qk, v)]
    q, k, values = (of_8_bits((spread * rng.standard_normal(shape)).astype(np.float32)) for shape in shapes)
    bias = (10 * rng.standard_normal((heads, tokens, tokens))).astype(np.float32)
    found = biased_attention(q, k, values, bias, LN_2, threads=2, level=level)
    wanted = biased_reference(*(x.astype(np.float64) for x in (q, k, values, bias)), LN_2)
    most = 1e-5 * max(1, spread**2) + rounding(level)
    assert np.abs(found - wanted).max() < most * np.abs(values).max()


def test_a_bias_of_other_tokens_is_refused() -> None:
    q, k, v, *_ = operands(1, 2, 3, 4, 8, 8)
    with pytest.raises(ValueError, match="as many heads and tokens"):
        biased_attention(q, k, v, np.zeros((2, 12, 11), np.float32), 1.0)


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("rising", [True, False], ids=["rising", "falling"])
def test_scores_may_outgrow_those_of_the_keys_before_them(rising: bool, level: str) -> None:
    """Peaks are renewed from block to block, or never: 2000 from the first key to the last is e^2000 in weights.

    Float32 leaves 1e-4 of such a score.
    """
    arrays = [of_8_bits(x) for x in operands(1, 1, 25, 40, 8, 8, spread=0.5)]
    arrays[0][..., 0] = 1
    # distances go from the last row of keys to the first
    arrays[3][:, 0] = np.linspace(0, 4000, 49) * (-1 if rising else 1)
    assert largest_error(arrays, LN_2, level=level) < 2e-4 + rounding(level)
    assert np.isfinite(attention(*arrays, LN_2, level=level)).all()


@pytest.mark.parametrize("level", HERE)
def test_a_level_of_scores_far_from_zero_changes_nothing(level: str) -> None:
    for away in (-3e4, 3e4):
        arrays = operands(1, 2, 9, 30, 16, 16)
        arrays[0][..., 0] = 1
        wanted = exact(arrays, 0.25)
        arrays[3][:, 0] += away
        # float32 leaves 0.002 of a score of 30000
        np.testing.assert_allclose(attention(*arrays, 0.25, level=level), wanted, atol=0.02 + 4 * rounding(level))


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("place", range(5), ids=["q", "k", "v", "rel_pos_h", "rel_pos_w"])
def test_what_is_not_a_number_does_not_become_one(place: int, level: str) -> None:
    arrays = operands(1, 2, 10, 23, 8, 8)
    arrays[place][(0, 1, 229, 0) if place < 3 else (1, 0)] = np.nan
    with np.errstate(invalid="ignore"):
        wanted = np.isnan(exact(arrays, 1.0))
    assert wanted.any()
    np.testing.assert_array_equal(np.isnan(attention(*arrays, 1.0, level=level)), wanted)


def test_views_of_tokens_by_head_are_read_where_they_lie() -> None:
    """As a projection gives q, k and v: tokens first, then heads."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((2, 12, 3, 5, 8)).astype(np.float32)
    q, k, v = (tokens[:, :, index].transpose(0, 2, 1, 3) for index in range(3))
    tables = operands(2, 5, 3, 4, 8, 8)[3:]
    found = attention(q, k, v, *tables, 0.3)
    np.testing.assert_array_equal(found, attention(*map(np.ascontiguousarray, (q, k, v)), *tables, 0.3))
    np.testing.assert_allclose(found, exact([q, k, v, *tables], 0.3), rtol=1e-5, atol=1e-6)


def test_threads_change_nothing() -> None:
    arrays = operands(2, 3, 33, 40, 20, 12)
    one = attention(*arrays, 0.2)
    for threads in (0, 2, 7, 1000):
        np.testing.assert_array_equal(attention(*arrays, 0.2, threads=threads), one)


@pytest.mark.parametrize("empty", range(2), ids=["batch", "heads"])
def test_nothing_gives_nothing(empty: int) -> None:
    sizes = [2, 2, 3, 3, 4, 4]
    sizes[empty] = 0
    assert attention(*operands(*sizes), 1.0).shape == (*sizes[:2], 9, 4)


@pytest.mark.parametrize("place", range(5), ids=["q", "k", "v", "rel_pos_h", "rel_pos_w"])
def test_operands_of_other_grids_are_refused(place: int) -> None:
    arrays = operands(1, 2, 3, 4, 8, 8)
    arrays[place] = arrays[place][:, :, :11] if place < 3 else arrays[place][:-2]
    with pytest.raises(ValueError, match="of one grid of h x w tokens"):
        attention(*arrays, 1.0)


@pytest.mark.skipif(len(HERE) == len(LEVELS), reason="this processor has them all")
def test_a_level_that_the_processor_lacks_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match=f"has no {LEVELS[-1]}: .* level is {HERE[-1]}"):
        attention(*operands(1, 1, 2, 2, 4, 4), 1.0, level=LEVELS[-1])


def test_its_work_is_counted() -> None:
    """By hand: SlimSAM-77's global block, 12 heads of 14 channels over 64 x 64 tokens."""
    least = work(1, 12, 64, 64, 14, 14)
    assert least.multiplications == 12 * 4096 * (4096 * 28 + 128 * 14)
    assert least.exponentials == 12 * 4096 * 4096
    arrays = operands(1, 12, 64, 64, 14, 14)
    assert least.bytes == sum(x.nbytes for x in arrays) + arrays[2].nbytes
