"""From a picture to a model's square input and back: segment-anything's resizing, padding and up-scaling."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image

from sam_edge.errors import DataError
from sam_edge.models.config import ModelConfig


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in a model's input; sizes are (height, width)."""

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    image_size: int

    @classmethod
    def of(cls, height: int, width: int, image_size: int) -> "Frame":
        """The frame of a picture whose long side becomes `image_size`."""
        input_size = ResizeLongestSide.get_preprocess_shape(height, width, image_size)
        return cls((height, width), (max(input_size[0], 1), max(input_size[1], 1)), image_size)

    def to_original(self, logits: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c height width"]:
        """Low-resolution logits at the picture's size, padding removed (segment-anything's `postprocess_masks`)."""
        full = F.interpolate(logits, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
        picture = full[..., : self.input_size[0], : self.input_size[1]]
        return F.interpolate(picture, self.original_size, mode="bilinear", align_corners=False)

    def to_input(self, coords: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Pixels (x, y) of the picture as pixels of the model's input."""
        height, width = self.original_size
        scale = coords.new_tensor([self.input_size[1] / width, self.input_size[0] / height])
        return coords * scale


def to_pixels(image: UInt8[np.ndarray, "h w 3"], config: ModelConfig) -> tuple[Float[Tensor, "1 3 s s"], Frame]:
    """Resize, normalise and pad an RGB picture as segment-anything does.

    Raises:
        DataError: not an H x W x 3 uint8 array.
    """
    require_picture(image)
    frame = Frame.of(image.shape[0], image.shape[1], config.image_size)
    # as its `apply_image`, but for sides that would be rounded to nothing
    resized = np.array(resize(to_pil_image(image), list(frame.input_size)))
    return normalise(torch.from_numpy(resized).permute(2, 0, 1)[None], config), frame


def require_picture(image: np.ndarray) -> None:
    """Raises DataError unless `image` is an H x W x 3 uint8 array with pixels in it."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"an image must be H x W x 3 uint8, got {image.shape} {image.dtype}.")


def normalise(pixels: Tensor, config: ModelConfig) -> Float[Tensor, "b 3 s s"]:
    """B x 3 x H x W pixels in 0..255, normalised and padded right and below to the model's square."""
    mean = torch.tensor(config.pixel_mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(config.pixel_std, device=pixels.device).view(3, 1, 1)
    height, width = pixels.shape[-2:]
    return F.pad((pixels - mean) / std, (0, config.image_size - width, 0, config.image_size - height))
