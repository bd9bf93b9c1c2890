"""From a picture to a model's square input: segment-anything's resizing, normalising and padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image

from sam_edge.errors import DataError
from sam_edge.segment.config import ModelConfig


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in a model's input; sizes are (height, width)."""

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_size: int

    @classmethod
    def of(cls, height: int, width: int, image_size: int) -> "Frame":
        """The frame of a picture whose long side becomes `image_size` (`ResizeLongestSide` of segment-anything)."""
        scale = image_size * 1.0 / max(height, width)
        # a side of a very long picture would be rounded to nothing
        return cls((height, width), (max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)), image_size)

    def to_input(self, coords: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Pixels (x, y) of the picture as pixels of the model's input."""
        height, width = self.original_size
        return coords * np.array([self.input_size[1] / width, self.input_size[0] / height], coords.dtype)

    def boxes_to_input(self, boxes_xywh: Sequence[Sequence[float]]) -> Float32[np.ndarray, "n 4"]:
        """Boxes of the picture (left, top, width, height) as corners x0, y0, x1, y1 in the model's input."""
        xywh = np.array(boxes_xywh, np.float32).reshape(-1, 4)
        corners = np.stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        return self.to_input(corners).reshape(-1, 4)


def to_pixels(
    image: UInt8[np.ndarray, "h w 3"], config: ModelConfig, size: tuple[int, int] | None = None
) -> tuple[Float32[np.ndarray, "1 3 s s"], Frame]:
    """Resize, normalise and pad an RGB picture as segment-anything does.

    `size` is the height and width that prompts and masks are about, where `image` is a reduced form of the picture.

    Raises:
        DataError: not an H x W x 3 uint8 array.
    """
    require_picture(image)
    height, width = size or image.shape[:2]
    frame = Frame.of(height, width, config.image_size)
    # as its `apply_image`, which resizes a Pillow image through torchvision
    resized = Image.fromarray(image).resize(frame.input_size[::-1], Image.Resampling.BILINEAR)
    return normalise(np.asarray(resized).transpose(2, 0, 1)[None], config), frame


def require_picture(image: np.ndarray) -> None:
    """Raises DataError unless `image` is an H x W x 3 uint8 array with pixels in it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"an image must be H x W x 3 uint8, got {image.shape} {image.dtype}.")


def normalise(pixels: Shaped[np.ndarray, "b 3 h w"], config: ModelConfig) -> Float32[np.ndarray, "b 3 s s"]:
    """Pixels in 0..255, normalised and padded with zeros right and below to the model's square."""
    mean, std = (np.array(part, np.float32)[:, None, None] for part in (config.pixel_mean, config.pixel_std))
    batch, _, height, width = pixels.shape
    padded = np.zeros((batch, 3, config.image_size, config.image_size), np.float32)
    # in place: a large model's square holds 12 MB of floats
    inside = padded[:, :, :height, :width]
    np.subtract(pixels, mean, out=inside, dtype=np.float32)
    np.divide(inside, std, out=inside)
    return padded
