"""Light and camera of a synthetic scene: shadows, uneven light, lens blur and sensor noise."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from sam_edge.scenes.shapes import Coverage
from sam_edge.scenes.textures import clouds


@dataclass(frozen=True)
class Shadow:
    """The shadow that every thing of a scene casts; one light, so all fall the same way."""

    right_px: int
    down_px: int
    soft_px: float
    """Standard deviation of its blurred edge."""
    darkness: float
    """Share of the light that it takes away."""

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> "Shadow":
        right, down = rng.integers(-(size // 32), size // 32 + 1, 2)
        return cls(int(right), int(down), size * rng.uniform(0.004, 0.02), rng.uniform(0.15, 0.55))

    def cast(self, canvas: Float32[np.ndarray, "3 s s"], covered: Coverage) -> None:
        """Darkens the canvas, in place, around a thing that is about to be painted."""
        margin = int(3 * self.soft_px) + 1
        wide = cv2.copyMakeBorder(covered.share, *(margin,) * 4, cv2.BORDER_CONSTANT, value=0)
        wide = cv2.GaussianBlur(wide, (0, 0), self.soft_px)
        left, top = covered.left + self.right_px - margin, covered.top + self.down_px - margin
        # slices clip at the far sides by themselves, unless all of the shadow lies beyond them
        below, beside = max(0, canvas.shape[1] - top), max(0, canvas.shape[2] - left)
        cut = wide[max(0, -top) : below, max(0, -left) : beside]
        window = Coverage(max(0, left), max(0, top), cut).window(canvas)
        window *= 1 - cut * np.float32(self.darkness / 255)


def photograph(
    rng: np.random.Generator, canvas: Float32[np.ndarray, "3 s s"], max_blur_px: float, max_noise: float
) -> UInt8[np.ndarray, "s s 3"]:
    """The canvas (0 to 255) under uneven light, through a lens, onto a sensor."""
    size = canvas.shape[1]
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.normal(0, 0.15, 2).astype(np.float32)
    light = 1 + slope_x * ramp[None, :] + slope_y * ramp[:, None]
    light += (clouds(rng, size, size, octaves=1) - np.float32(0.5)) * np.float32(rng.uniform(0, 0.3))
    picture = cv2.merge(list(canvas * light))
    blur_px = rng.uniform(0, max_blur_px)
    if blur_px > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), blur_px)
    noise = np.float32(max_noise * rng.random() ** 2)
    # The sum of two uniform bytes is a good enough bell, and ten times quicker to draw than a normal.
    grains = np.frombuffer(rng.bytes(2 * picture.size), np.uint8).reshape(2, *picture.shape)
    bell = cv2.add(grains[0], grains[1], dtype=cv2.CV_32F) - np.float32(255)
    return cv2.add(picture, bell * (noise / np.float32(255 / 6**0.5)), dtype=cv2.CV_8U)
