"""sam_edge.kernels.masks: bits, areas, stability and boxes are the reference's to the bit."""

import numpy as np
import pytest
from PIL import Image

from sam_edge.kernels.gpu import Device
from sam_edge.kernels.masks import (
    DeviceScaling,
    at_points,
    count_cells,
    measure,
    packed,
    reference,
    unpacked,
    work,
)
from sam_edge.segment import masks as on_the_cpu
from sam_edge.segment.frame import Frame
from sam_edge.segment.scaling import Scaling
from tests.kernels.emulated import Emulation

SIZES = [(50, 90, 64, 16), (33, 129, 64, 32), (300, 200, 256, 64), (1, 7, 64, 16), (530, 31, 256, 64)]
"""Height, width, the model's square and its masks' side."""


def some_logits(count: int, side: int) -> np.ndarray:
    """Smooth ones whose outlines go anywhere; the second is nowhere above any threshold, the third everywhere."""
    coarse = np.random.default_rng(side).normal(0, 4, (count, 6, 6)).astype(np.float32)
    logits = np.stack(
        [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse]
    )
    logits[1:2], logits[2:3] = -5, 5
    return logits


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("offset", [1.0, 0.0])
def test_the_kernel_is_the_reference_to_the_bit(
    size: tuple[int, int, int, int], dtype: type, offset: float, device: Device
) -> None:
    height, width, square, side = size
    scaling = Scaling.of(Frame.of(height, width, square), side)
    logits = some_logits(5, side).astype(dtype)
    wanted = reference(logits, scaling, offset)
    found = measure(device, device.put(logits), DeviceScaling.of(device, scaling), offset)
    np.testing.assert_array_equal(device.get(found.bits), wanted.bits)
    np.testing.assert_array_equal(found.areas, wanted.areas)
    np.testing.assert_array_equal(found.measured.boxes, wanted.measured.boxes)
    np.testing.assert_array_equal(found.measured.stability, wanted.measured.stability)
    assert found.areas[1] == 0
    assert np.isnan(found.measured.stability[1])
    assert found.areas[2] == height * width
    # everything mode's own answer, by tiles
    cpu = on_the_cpu.measure(logits.astype(np.float32), scaling, offset)
    np.testing.assert_array_equal(found.measured.boxes, cpu.boxes)
    np.testing.assert_allclose(found.measured.stability, cpu.stability, atol=1e-3)
    for index in range(len(logits)):
        mask = unpacked(device.get(found.bits)[index], height)
        assert mask.flags.f_contiguous
        differing = mask ^ on_the_cpu.mask_of(logits[index].astype(np.float32), scaling)
        # a logit that is zero but for rounding
        assert differing.mean() < 1e-4


@pytest.mark.parametrize("with_bits", [True, False])
def test_no_masks_and_no_bits_are_answers_too(with_bits: bool, device: Device) -> None:
    scaling = DeviceScaling.of(device, Scaling.of(Frame.of(40, 30, 64), 16))
    logits = device.put(some_logits(3, 16)[: 3 * with_bits])
    found = measure(device, logits, scaling, 1.0, with_bits=with_bits)
    assert found.bits.shape == (3 * with_bits, 30, 2)
    assert found.measured.boxes.shape == (3 * with_bits, 4)
    bare = measure(device, device.put(some_logits(3, 16)), scaling, 1.0, with_bits=False)
    assert bare.bits.shape == (0, 30, 2)
    assert bare.areas.tolist() == measure(device, device.put(some_logits(3, 16)), scaling, 1.0).areas.tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_points_and_cells_are_those_of_the_logits(size: tuple[int, int, int, int], dtype: type, device: Device) -> None:
    height, width, square, side = size
    scaling, rng = Scaling.of(Frame.of(height, width, square), side), np.random.default_rng(1)
    logits, chosen = some_logits(4, side).astype(dtype), np.array([3, 0, 3])
    there, floats = device.put(logits), logits[chosen].astype(np.float32)
    ys, xs = rng.integers(0, height, 300), rng.integers(0, width, 300)
    found = at_points(device, there, chosen, DeviceScaling.of(device, scaling), ys, xs)
    np.testing.assert_allclose(found, scaling.at(floats, ys, xs), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, np.stack([scaling.full(one)[ys, xs] for one in floats]))
    inner = floats[:, : side - 1, : side // 2]
    found_cells = count_cells(device, there, chosen, side - 1, side // 2)
    np.testing.assert_array_equal(found_cells, (inner > 0).sum((1, 2)))
    assert not count_cells(device, there, chosen[:0], 1, 1).size


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 2), (32, 3), (33, 1), (64, 5), (100, 40)])
def test_bits_are_unpacked_to_what_was_packed(height: int, width: int) -> None:
    mask = np.random.default_rng(height).random((height, width)) < 0.5
    assert packed(mask).shape == (width, -(-height // 32))
    np.testing.assert_array_equal(unpacked(packed(mask), height), mask)


def test_logits_of_another_kind_are_refused() -> None:
    device = Emulation()
    scaling = DeviceScaling.of(device, Scaling.of(Frame.of(9, 9, 64), 16))
    for logits in (np.zeros((2, 4, 4), np.float64), np.zeros((4, 4), np.float32)):
        with pytest.raises(ValueError, match="K x h x w of float32 or float16"):
            measure(device, device.put(logits), scaling, 1.0)


def test_its_work_is_counted() -> None:
    least = work(3, 256, 480, 640, 2)
    assert least.bytes == 3 * (256 * 256 * 2 + 640 * 480 // 8)
    assert least.multiplications == 3 * 480 * 640 * 12
