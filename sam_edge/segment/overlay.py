"""Pictures of masks: what a person looks at."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, UInt8


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Bool[np.ndarray, "h w"]],
    *,
    points: Sequence[tuple[float, float, int]] = (),
    boxes: Sequence[tuple[float, float, float, float]] = (),
    seed: int = 0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with each mask tinted and outlined, largest first, and the prompts drawn.

    Points are (x, y, label), green for foreground and red for background; boxes XYXY.
    """
    rng = np.random.default_rng(seed)
    canvas = image.astype(np.float32)
    thickness = max(round(max(image.shape[:2]) / 400), 1)
    outlines = []
    # one mask at a time: a sequence may decode them as they are asked for
    areas = [int(mask.sum()) for mask in masks]
    for index in sorted(range(len(areas)), key=lambda index: -areas[index]):
        mask = masks[index]
        hue = np.array([[[rng.integers(180), 200, 255]]], np.uint8)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
        canvas[mask] = 0.55 * canvas[mask] + 0.45 * colour
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        outlines.append((contours, colour.tolist()))
    drawn = np.ascontiguousarray(canvas.round().astype(np.uint8))
    for contours, colour in outlines:
        cv2.drawContours(drawn, contours, -1, colour, thickness, cv2.LINE_AA)
    for x0, y0, x1, y1 in boxes:
        corners = (round(x0), round(y0)), (round(x1), round(y1))
        cv2.rectangle(drawn, *corners, (255, 255, 255), thickness + 1, cv2.LINE_AA)
    for x, y, label in points:
        centre, colour = (round(x), round(y)), (40, 220, 60) if label == 1 else (230, 40, 40)
        cv2.circle(drawn, centre, 4 * thickness, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(drawn, centre, 3 * thickness, colour, -1, cv2.LINE_AA)
    return drawn
