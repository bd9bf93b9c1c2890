"""Colours and surface patterns of synthetic scenes."""

import colorsys
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Float32

Pattern = Literal["flat", "gradient", "stripes", "checker", "clouds", "speckle", "dome"]
PATTERNS: tuple[Pattern, ...] = (
    "flat",
    "gradient",
    "stripes",
    "checker",
    "clouds",
    "clouds",
    "speckle",
    "dome",
)


def palette(rng: np.random.Generator, count: int = 10) -> Float[np.ndarray, "count 3"]:
    """RGB colours, 0 to 255, that could share one photo: grey, of neighbouring hues, or of any hue."""
    scheme = rng.choice(["grey", "neighbours", "any"], p=[0.12, 0.4, 0.48])
    hue, saturation = rng.random(), rng.uniform(0.15, 0.75)
    spread = {"grey": 0.0, "neighbours": 0.12, "any": 0.5}[scheme]
    colours = []
    # Brightness is spread evenly and shuffled, so that neighbours in a scene tend to differ.
    for value in rng.permutation(np.linspace(0.12, 0.97, count)):
        saturated = 0.0 if scheme == "grey" else float(np.clip(rng.normal(saturation, 0.2), 0, 0.95))
        colours.append(colorsys.hsv_to_rgb((hue + rng.uniform(-spread, spread)) % 1, saturated, float(value)))
    return np.array(colours) * 255


def pattern(rng: np.random.Generator, kind: Pattern, height: int, width: int) -> Float32[np.ndarray, "height width"]:
    """A field of blending weights, 0 to 1, with which a surface mixes its two colours."""
    if kind == "flat":
        return np.zeros((height, width), np.float32)
    if kind == "clouds":
        return clouds(rng, height, width)
    if kind == "speckle":
        grains = rng.random((max(1, height // 2), max(1, width // 2)), dtype=np.float32)
        grown = cv2.resize(grains, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.clip(grown * 3 - rng.uniform(0.8, 2), 0, 1, dtype=np.float32)
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32(width / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(height / 2)
    if kind == "dome":
        # Lit from one side of the centre, as round things are.
        x = x / np.float32(width / 2) - np.float32(rng.uniform(-0.4, 0.4))
        y = y / np.float32(height / 2) - np.float32(rng.uniform(-0.4, 0.4))
        return np.clip((x * x + y * y) * np.float32(0.7), 0, 1)
    angle = rng.uniform(0, np.pi)
    sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    if kind == "gradient":
        return np.clip(along / np.float32(max(height, width)) + np.float32(0.5), 0, 1)
    period_px = np.float32(rng.uniform(4, max(6, min(height, width) / 3)))
    sharpness = np.float32(rng.choice([1, 4]))
    if kind == "stripes":
        return np.clip(np.sin(along * (2 * np.float32(np.pi) / period_px)) * sharpness + np.float32(0.5), 0, 1)
    waves = np.sin(along * (2 * np.float32(np.pi) / period_px)) * np.sin(across * (2 * np.float32(np.pi) / period_px))
    return np.clip(waves * 4 + np.float32(0.5), 0, 1)


def clouds(rng: np.random.Generator, height: int, width: int, octaves: int = 4) -> Float32[np.ndarray, "height width"]:
    """Value noise: random grids, each twice as fine and half as strong as the last, 0 to 1."""
    field = np.zeros((height, width), np.float32)
    cells, strength = int(rng.integers(2, 6)), 0.5
    for _ in range(octaves):
        grid = rng.random((cells, cells), dtype=np.float32) * np.float32(2 * strength)
        field += cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
        cells, strength = cells * 2, strength / 2
        if cells > max(height, width):
            break
    # Averages crowd around one half; stretch them to use the whole range.
    return np.clip((field - np.float32(0.6)) * np.float32(1.4), 0, 1)
