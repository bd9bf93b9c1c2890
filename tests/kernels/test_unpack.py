"""sam_edge.kernels.unpack: 6-bit integers come out as they went in."""

import numpy as np
import pytest

from sam_edge.kernels.gpu import Device
from sam_edge.kernels.unpack import pack, reference, reference_scaled, unpack, unpack_scaled, work
from tests.kernels.emulated import Emulation

COUNTS = [0, 1, 2, 3, 4, 5, 15, 16, 17, 64, 4095, 4096, 4097]


def integers(count: int, bits: int = 6) -> np.ndarray:
    """All that so many bits hold, and more of them by chance."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    rest = np.random.default_rng(count).integers(low, high, max(count, 2**bits))
    return np.concat([np.arange(low, high), rest])[:count].astype(np.int8)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("count", COUNTS)
def test_the_reference_gives_back_what_was_packed(count: int, bits: int) -> None:
    packed = pack(integers(count, bits), bits)
    assert packed.nbytes == -(-count * bits // 8)
    np.testing.assert_array_equal(reference(packed, count, bits), integers(count, bits))


def test_four_integers_lie_in_three_bytes_lowest_first() -> None:
    assert pack(np.array([1, -1, 0, -32], np.int8)).tolist() == [0b11000001, 0b00001111, 0b10000000]


@pytest.mark.parametrize("count", COUNTS)
def test_the_kernel_gives_back_what_was_packed(count: int, device: Device) -> None:
    found = unpack(device, device.put(pack(integers(count))), count)
    np.testing.assert_array_equal(device.get(found), integers(count))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (7, 16), (2, 2049), (0, 4), (64, 48)])
def test_the_kernel_scales_each_row_as_the_reference_does(rows: int, columns: int, device: Device) -> None:
    packed = pack(integers(rows * columns))
    # subnormal halves, and those beyond the largest, are among what comes out
    steps = np.geomspace(1e-7, 1e4, rows).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = reference_scaled(packed, steps, columns)
    found = unpack_scaled(device, device.put(packed), device.put(steps), columns)
    np.testing.assert_array_equal(device.get(found), wanted)


@pytest.mark.parametrize("packed", [np.zeros(4, np.uint8), np.zeros(3, np.int8)])
def test_bytes_of_another_number_are_refused(packed: np.ndarray) -> None:
    device = Emulation()
    with pytest.raises(ValueError, match="4 integers of 6 bits are 3 uint8"):
        unpack(device, device.put(packed), 4)


def test_its_work_is_counted() -> None:
    assert work(1000, 2).bytes == 750 + 2000
