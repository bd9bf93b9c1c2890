"""sam_edge.kernels.preprocess: Pillow's bytes, in NumPy and in one kernel."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sam_edge.kernels.gpu import Device
from sam_edge.kernels.preprocess import preprocess, reference, work
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.frame import Frame, to_pixels
from tests.kernels.emulated import COMPILER, Emulation

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = [
    *((50, 90, 64), (3, 200, 64), (64, 64, 64), (17, 13, 64), (480, 333, 64), (1, 1, 5), (700, 1, 9), (9, 70, 131)),
    (310, 100, 70),
]
"""Height, width and square: reduced, enlarged, as it is, a row, a pixel, a column and a tall one (down first)."""


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Bytes with both ends of their range among them, which the rounding must not pass."""
    return np.random.default_rng(seed).choice(
        np.array([0, 255, 1, 254, *range(20, 240, 20)], np.uint8), (height, width, 3)
    )


def pillows(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """3 x height x width bytes."""
    resized = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 300)] * 2), st.tuples(*[st.integers(1, 120)] * 2), st.integers(0, 9))
def test_the_reference_resizes_as_pillow_does(shape: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    picture = noise(*shape, seed)
    found = reference(picture, size, 120, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(found[0, :, : size[0], : size[1]], pillows(picture, size))
    assert found.sum() == found[0, :, : size[0], : size[1]].sum()


@pytest.mark.parametrize(("height", "width", "square"), SIZES)
def test_the_reference_is_what_the_predictor_gives_a_model(
    height: int, width: int, square: int, tiny_config: ModelConfig
) -> None:
    picture = noise(height, width)
    wanted, frame = to_pixels(picture, tiny_config)
    scale = tiny_config.pixel_mean, tiny_config.pixel_std
    found = reference(picture, frame.input_size, tiny_config.image_size, *scale)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("height", "width", "square"), SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_kernel_is_the_reference_to_the_bit(
    height: int, width: int, square: int, dtype: str, device: Device
) -> None:
    picture, size = noise(height, width), Frame.of(height, width, square).input_size
    found = preprocess(device, picture, size, square, MEAN, DEVIATION, dtype)
    wanted = reference(picture, size, square, MEAN, DEVIATION, dtype)
    assert found.shape == wanted.shape == (1, 3, square, square)
    np.testing.assert_array_equal(device.get(found), wanted)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_photo_is_the_reference_to_the_bit(shared_data: Path) -> None:
    picture = np.asarray(Image.open(sorted((shared_data / "coco128").glob("*.jpg"))[0]).convert("RGB"))
    size, device = Frame.of(*picture.shape[:2], 256).input_size, Emulation()
    found = device.get(preprocess(device, picture, size, 256, MEAN, DEVIATION))
    np.testing.assert_array_equal(found, reference(picture, size, 256, MEAN, DEVIATION))


@pytest.mark.parametrize(
    ("picture", "size", "dtype"),
    [
        (np.zeros((4, 4, 4), np.uint8), (4, 4), "float32"),
        (np.zeros((4, 4, 3), np.float32), (4, 4), "float32"),
        (np.zeros((0, 4, 3), np.uint8), (4, 4), "float32"),
        (np.zeros((4, 4, 3), np.uint8), (4, 9), "float32"),
        (np.zeros((4, 4, 3), np.uint8), (0, 4), "float32"),
        (np.zeros((4, 4, 3), np.uint8), (4, 4), "float64"),
    ],
)
def test_what_is_no_picture_or_does_not_fit_is_refused(picture: np.ndarray, size: tuple[int, int], dtype: str) -> None:
    with pytest.raises(ValueError, match="must"):
        preprocess(Emulation(), picture, size, 8, MEAN, DEVIATION, dtype)


def test_its_work_is_counted() -> None:
    """By hand: 8 x 4 to 4 x 2 takes of each axis 4 taps within, and 3 at either end, where the fourth is outside."""
    least = work(8, 4, (4, 2), 4, 2)
    assert least.multiplications == 3 * (8 * (3 + 3) + 2 * (3 + 4 + 4 + 3))
    assert least.bytes == 3 * (32 + 2 * 16)
