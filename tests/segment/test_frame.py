"""sam_edge.segment.frame: segment-anything's way from a picture to the model's square and back."""

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from sam_edge.errors import DataError
from sam_edge.segment.frame import Frame, normalise, to_pixels

SHAPES = [(64, 64), (50, 90), (91, 33), (10, 100), (203, 20), (1, 40), (640, 481), (37, 63)]


def picture(height: int, width: int) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_segment_anything_s(tiny_sam, shape):
    pixels, frame = to_pixels(picture(*shape), tiny_sam.config)
    resized = ResizeLongestSide(64).apply_image(picture(*shape))
    wanted = tiny_sam.preprocess(torch.as_tensor(resized).permute(2, 0, 1)[None])
    torch.testing.assert_close(pixels, wanted, rtol=1e-6, atol=1e-6)
    assert pixels.shape == (1, 3, 64, 64)
    assert frame == Frame(shape, resized.shape[:2], 64)
    # what is not picture is zero after it is normalised
    assert not pixels[..., resized.shape[0] :, :].any()
    assert not pixels[..., resized.shape[1] :].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_come_back_as_segment_anything_brings_them_back(tiny_sam, shape):
    frame = Frame.of(*shape, 64)
    low_res = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = tiny_sam.postprocess_masks(low_res, frame.input_size, frame.original_size)
    got = frame.to_original(low_res)
    assert got.shape == (2, 3, *shape)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coordinates_are_segment_anything_s(shape):
    points = np.random.default_rng(1).uniform(0, 1, (4, 5, 2)) * [shape[1], shape[0]]
    wanted = ResizeLongestSide(64).apply_coords(points, shape)
    got = Frame.of(*shape, 64).to_input(torch.as_tensor(points, dtype=torch.float32))
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-4)


def test_a_very_flat_picture_keeps_one_row():
    frame = Frame.of(1, 1000, 64)
    assert frame.input_size == (1, 64)
    assert Frame.of(2000, 3, 64).input_size == (64, 1)


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 3)], ids=str)
def test_a_very_flat_picture_can_be_encoded(tiny_config, shape):
    pixels, frame = to_pixels(picture(*shape), tiny_config)
    assert pixels.shape == (1, 3, 64, 64)
    assert frame.to_original(torch.zeros(1, 1, 32, 32)).shape == (1, 1, *shape)


def test_pixels_are_normalised_by_the_config(tiny_config):
    config = tiny_config.replace(pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 4.0, 8.0))
    pixels = torch.full((1, 3, 64, 64), 11.0)
    assert normalise(pixels, config)[0, :, 5, 5].tolist() == [5.0, 2.25, 1.0]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((3, 5, 5), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
    ],
    ids=["grey", "alpha", "channels first", "float", "no rows", "no columns"],
)
def test_anything_but_an_rgb_picture_is_refused(tiny_config, image):
    with pytest.raises(DataError, match="an image must be H x W x 3 uint8"):
        to_pixels(image, tiny_config)
