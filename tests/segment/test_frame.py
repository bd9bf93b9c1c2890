"""sam_edge.segment.frame: segment-anything's way from a picture to the model's square."""

import numpy as np
import pytest

from sam_edge.errors import DataError
from sam_edge.segment.frame import Frame, normalise, to_pixels
from sam_edge.segment.scaling import Scaling

SHAPES = [(64, 64), (50, 90), (91, 33), (10, 100), (203, 20), (1, 40), (640, 481), (37, 63)]


def picture(height: int, width: int) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_are_segment_anything_s(tiny_sam, torch, resize_longest_side, shape):
    pixels, frame = to_pixels(picture(*shape), tiny_sam.config)
    resized = resize_longest_side(64).apply_image(picture(*shape))
    wanted = tiny_sam.preprocess(torch.as_tensor(resized).permute(2, 0, 1)[None])
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, wanted.numpy())
    assert pixels.shape == (1, 3, 64, 64)
    assert frame == Frame(shape, resized.shape[:2], 64)
    # what is not picture is zero after it is normalised
    assert not pixels[..., resized.shape[0] :, :].any()
    assert not pixels[..., resized.shape[1] :].any()


@pytest.mark.parametrize("size", [64, 96, 1024])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 2), (51, 97), (97, 51), (333, 271), (1, 59), (59, 1), (1201, 907)], ids=str
)
def test_pixels_are_torch_s_bit_for_bit(tiny_config, torch, resize_longest_side, shape, size):
    config = tiny_config.replace(image_size=size, pixel_mean=(120.7, 99.01, 3.3), pixel_std=(58.395, 57.12, 0.7))
    resized = torch.as_tensor(resize_longest_side(size).apply_image(picture(*shape))).permute(2, 0, 1)
    mean, std = (torch.tensor(part)[:, None, None] for part in (config.pixel_mean, config.pixel_std))
    padding = (0, size - resized.shape[2], 0, size - resized.shape[1])
    wanted = torch.nn.functional.pad((resized - mean) / std, padding)[None].numpy()
    assert to_pixels(picture(*shape), config)[0].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("layout", ["a view", "column-major", "read-only"])
def test_pictures_of_any_layout_are_the_same(tiny_config, layout):
    image = picture(40, 60)
    if layout == "a view":
        given = np.repeat(image, 2, 1)[:, ::2]
    else:
        given = np.asfortranarray(image)
        given.setflags(write=layout != "read-only")
    np.testing.assert_array_equal(to_pixels(given, tiny_config)[0], to_pixels(image, tiny_config)[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coordinates_are_segment_anything_s(resize_longest_side, shape):
    points = np.random.default_rng(1).uniform(0, 1, (4, 5, 2)) * [shape[1], shape[0]]
    wanted = resize_longest_side(64).apply_coords(points, shape)
    got = Frame.of(*shape, 64).to_input(points.astype(np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_a_very_flat_picture_keeps_one_row():
    frame = Frame.of(1, 1000, 64)
    assert frame.input_size == (1, 64)
    assert Frame.of(2000, 3, 64).input_size == (64, 1)


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 3)], ids=str)
def test_a_very_flat_picture_can_be_encoded(tiny_config, shape):
    pixels, frame = to_pixels(picture(*shape), tiny_config)
    assert pixels.shape == (1, 3, 64, 64)
    assert Scaling.of(frame, 32).full(np.zeros((32, 32), np.float32)).shape == shape


def test_pixels_are_normalised_by_the_config(tiny_config):
    config = tiny_config.replace(pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 4.0, 8.0))
    pixels = np.full((1, 3, 64, 64), 11.0, np.float32)
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
