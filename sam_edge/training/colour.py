"""What changes a view's colours and leaves its masks alone."""

import cv2
import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "h w 3"]

MAX_BLUR = 1.5
"""Largest standard deviation of a blurred view, in pixels of the view."""
MAX_NOISE = 12.0
"""Largest standard deviation of a noisy view, in grey levels of 255."""


def recolour(image: Picture, amount: float, rng: np.random.Generator) -> Picture:
    """Random brightness, contrast and saturation, each changed by at most `amount` of itself, and hue, in radians."""
    if amount == 0:
        return image
    brightness, contrast, saturation = 1 + rng.uniform(-amount, amount, 3)
    angle = rng.uniform(-amount, amount)
    # all four are linear in the colour, so one matrix does them: turned about the grey axis, drawn to it, scaled
    grey = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turned = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * grey + np.sin(angle) * across
    matrix = brightness * (saturation * turned + (1 - saturation) * grey)
    mean = brightness * float(np.mean(cv2.mean(image)[:3]))
    offset = np.full((3, 1), mean * (1 - contrast))
    return cv2.transform(image, np.hstack([contrast * matrix, offset]))


def degrade(image: Picture, chance: float, rng: np.random.Generator) -> Picture:
    """Grey, blurred and noisy, each with the same chance."""
    if chance == 0:
        return image
    greyed, blurred, noisy = rng.random(3) < chance
    if greyed:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if blurred:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, MAX_BLUR))
    if noisy:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, MAX_NOISE))
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return image
