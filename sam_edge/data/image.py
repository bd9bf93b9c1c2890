"""One image file to RGB bytes, whatever the camera, scanner or drawing program wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from sam_edge.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File name endings (lower case) that are taken for images."""

_SENSOR_BITS = (8, 10, 12, 14, 16)
"""Bits per pixel of cameras and scanners whose pictures lie in 16-bit files."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as it is meant to be looked at: upright by its EXIF tag, opaque, 8-bit RGB.

    Raises DataError, with the path, for a file that is missing, truncated, broken or no image.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such image file; check the path.")
    return decode_image(path, str(path))


def read_reduced(path: str | Path, side: int) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """Like `read_image`, of a JPEG a half, quarter or eighth whose sides are no shorter than `side` pixels where that
    can be, and the height and width that the whole has.

    The decoder then skips most of its work; pixels differ a little from those of the whole, reduced.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such image file; check the path.")
    size = [0, 0]

    def reduce(image: Image.Image) -> None:
        size[:] = image.size[::-1]
        image.draft("RGB", (side, side))

    picture = decode_image(path, str(path), reduce)
    height, width = size
    # a camera held upright has turned the picture that it wrote
    turned = (height > width) != (picture.shape[0] > picture.shape[1]) and height != width
    return picture, (width, height) if turned else (height, width)


def decode_image(
    file: Path | BinaryIO, where: str, before: Callable[[Image.Image], None] = lambda image: None
) -> UInt8[np.ndarray, "h w 3"]:
    """Like `read_image`, for an open file too; `where` is what errors call it, `before` sees it before its pixels."""
    try:
        with Image.open(file) as image:
            if image.format == "EPS":
                # Pillow would have Ghostscript run it
                raise DataError("PostScript is a program, no picture; convert it to PNG.")
            before(image)
            image.load()
            return _to_rgb(_upright(image))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except MemoryError as error:
        raise DataError(f"{where}: does not fit into memory; scale it down.") from error
    except Exception as error:
        # Wide on purpose: broken bytes make the decoders raise almost anything (OSError, SyntaxError,
        # struct.error, zlib.error, IndexError, ...), and each of them means the same to the user.
        raise DataError(f"{where}: not a readable image ({error}); replace or remove it.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # A damaged EXIF block (cameras and editors write many) is no reason to refuse intact pixels.
        return image


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in _SIXTEEN_BIT_MODES:
        return np.repeat(_sixteen_to_eight_bit(image)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError("floating-point pixels have no agreed white; convert the image to 8 or 16 bit.")
    if image.has_transparency_data:
        # The colour under transparent pixels is arbitrary (often black, or leftovers of an edit), so alpha
        # cannot just be dropped; white is the page that such cut-outs are made for.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    # np.array and not asarray: torch and OpenCV want memory that they may write to.
    return np.array(image.convert("RGB"))


def _sixteen_to_eight_bit(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Scales what the sensor could tell to 0..255; Pillow's own conversion would clip at 255.

    Files do not say how many of their 16 bits are used: the fewest of `_SENSOR_BITS` that hold the brightest pixel.
    """
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise DataError(f"grey values {grey.min()} to {grey.max()} exceed 16 bits; convert the image to 16 bit.")
    white = next(top for top in (2**bits - 1 for bits in _SENSOR_BITS) if grey.max() <= top)
    return np.round(grey * (255 / white)).astype(np.uint8)
