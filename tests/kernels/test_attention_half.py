"""csrc/attention.cu: attention on tensor cores against the same in float64."""

import numpy as np
import pytest

from sam_edge.kernels import attention
from sam_edge.kernels.attention_half import WIDTHS, attention_half, reference, shared_bytes, work
from sam_edge.kernels.gpu import Device
from tests.kernels.emulated import Emulation

SIZES = {
    "SAM-B's window": (1, 1, 14, 14, 64, 64),
    "SlimSAM-77's window": (2, 2, 14, 14, 14, 14),
    "one token": (1, 1, 1, 1, 8, 8),
    "a row": (2, 1, 1, 65, 10, 16),
    "a column, narrower values": (1, 2, 70, 1, 64, 9),
}
OTHERS = {
    "ViT-H's width": (1, 1, 14, 14, 80, 80),
    "odd widths": (1, 2, 9, 17, 33, 47),
    "nano's window": (3, 5, 8, 8, 32, 32),
    "nano's whole grid": (1, 1, 32, 32, 32, 32),
    "SlimSAM-77's whole grid": (1, 1, 64, 64, 14, 14),
    "all widths": (1, 1, 5, 13, 48, 41),
}
TOLERANCE = 3 * 2**-11
"""Of the largest value: weights and the result are rounded to half, each by at most 2^-11 of itself; the operands are
halves already."""


def halves(
    batch: int, heads: int, height: int, width: int, qk: int, v: int, *, spread: float = 1.0, seed: int = 0
) -> list[np.ndarray]:
    """q, k, v, rel_h and rel_w of normal values, `spread` apart."""
    rng = np.random.default_rng(seed)
    lead = (batch, heads, height * width)
    return [(spread * rng.standard_normal((*lead, n))).astype(np.float16) for n in (qk, qk, v, height, width)]


def largest_error(arrays: list[np.ndarray], scale: float, device: Device) -> float:
    """Relative to the largest value."""
    wanted = reference(*(x.astype(np.float64) for x in arrays), scale)
    found = device.get(attention_half(device, *map(device.put, arrays), scale))
    assert found.dtype == np.float16
    return float(np.abs(found - wanted).max() / np.abs(arrays[2]).max())


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_it_is_the_reference_to_the_precision_of_halves(sizes: tuple[int, ...], spread: float, device: Device) -> None:
    assert largest_error(halves(*sizes, spread=spread), sizes[4] ** -0.5, device) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("sizes", OTHERS.values(), ids=OTHERS)
def test_it_is_the_reference_in_other_sizes(sizes: tuple[int, ...], device: Device) -> None:
    assert largest_error(halves(*sizes), sizes[4] ** -0.5, device) < TOLERANCE


@pytest.mark.parametrize("rising", [True, False], ids=["rising", "falling"])
def test_scores_may_outgrow_those_of_the_keys_before_them(rising: bool, device: Device) -> None:
    """A thousand from the first key to the last is e^1000 in weights."""
    arrays = halves(1, 1, 20, 10, 16, 16)
    arrays[3][:] = np.linspace(0, 1000, 20) * (1 if rising else -1)
    assert largest_error(arrays, 0.25, device) < TOLERANCE


@pytest.mark.parametrize("place", range(5), ids=["q", "k", "v", "rel_h", "rel_w"])
def test_what_is_not_a_number_does_not_become_one(place: int, device: Device) -> None:
    arrays = halves(1, 2, 10, 7, 16, 16)
    arrays[place][0, 1, 66, 0] = np.nan
    with np.errstate(invalid="ignore"):
        wanted = np.isnan(reference(*(x.astype(np.float64) for x in arrays), 1.0))
    assert wanted.any()
    found = device.get(attention_half(device, *map(device.put, arrays), 1.0))
    np.testing.assert_array_equal(np.isnan(found), wanted)


@pytest.mark.parametrize("empty", range(2), ids=["batch", "heads"])
def test_nothing_gives_nothing(empty: int) -> None:
    sizes, device = [2, 2, 3, 3, 8, 8], Emulation()
    sizes[empty] = 0
    assert attention_half(device, *map(device.put, halves(*sizes)), 1.0).shape == (*sizes[:2], 9, 8)
    assert device.launches == []


@pytest.mark.parametrize("place", range(5), ids=["q", "k", "v", "rel_h", "rel_w"])
def test_operands_of_other_grids_or_types_are_refused(place: int) -> None:
    device = Emulation()
    for change in (lambda x: x[:, :, :11], lambda x: x.astype(np.float32)):
        arrays = halves(1, 2, 3, 4, 8, 8)
        arrays[place] = change(arrays[place])
        with pytest.raises(ValueError, match="float16 of one grid of h x w tokens"):
            attention_half(device, *map(device.put, arrays), 1.0)


def test_heads_and_grids_that_do_not_fit_are_refused() -> None:
    device = Emulation()
    with pytest.raises(ValueError, match="80 channels, got 96"):
        attention_half(device, *map(device.put, halves(1, 1, 2, 2, 96, 8)), 1.0)
    with pytest.raises(ValueError, match=r"1 x 400 tokens take .* bytes of shared memory"):
        attention_half(device, *map(device.put, halves(1, 1, 1, 400, 8, 8)), 1.0)


def test_every_grid_of_a_sam_fits_into_shared_memory() -> None:
    """64 x 64 tokens, a 1024 x 1024 picture in patches of 16, at every width that is compiled."""
    assert all(shared_bytes(width, 64, 64) <= 48 << 10 for width in WIDTHS)


def test_its_work_is_counted_in_halves_too() -> None:
    arrays = halves(1, 3, 8, 8, 14, 10)
    least = work(1, 3, 8, 8, 14, 10)
    # what comes out is as large as the values
    assert least.bytes == sum(x.nbytes for x in arrays) + arrays[2].nbytes
    assert least.multiplications == 3 * 64 * 64 * 24


def test_the_reference_is_that_of_the_cpus_kernel() -> None:
    """Which takes the tables: the queries' products with them are rel_h and rel_w, by the distance to the key."""
    rng = np.random.default_rng(0)
    height, width = 5, 7
    q, k, v = (rng.standard_normal((2, 3, height * width, n)) for n in (8, 8, 6))
    tables = [rng.standard_normal((2 * side - 1, 8)) for side in (height, width)]
    y, x = np.divmod(np.arange(height * width), width)
    rel_h, rel_w = (
        np.stack([q[:, :, i] @ table[at[i] - np.arange(side) + side - 1].T for i in range(len(at))], 2)
        for table, at, side in zip(tables, (y, x), (height, width), strict=True)
    )
    found = reference(q, k, v, rel_h, rel_w, 0.3)
    np.testing.assert_allclose(found, attention.reference(q, k, v, *tables, 0.3), rtol=1e-10)
