"""Crops of a picture for everything mode, as segment-anything takes them (`generate_crop_boxes`)."""

import math

import numpy as np
from jaxtyping import Bool, Int

Box = tuple[int, int, int, int]
EDGE_PX = 20.0
"""A mask whose box comes so near to an inner edge of its crop was probably cut there."""


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> tuple[list[Box], list[int]]:
    """XYXY and layer of the whole picture (height, width) and of 2^i x 2^i crops for each layer i."""
    height, width = size
    boxes, of_layer = [(0, 0, width, height)], [0]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / per_side))
        crop_w, crop_h = (math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height))
        for column in range(per_side):
            for row in range(per_side):
                x, y = (crop_w - overlap) * column, (crop_h - overlap) * row
                boxes.append((x, y, min(x + crop_w, width), min(y + crop_h, height)))
                of_layer.append(layer)
    return boxes, of_layer


def near_crop_edge(boxes: Int[np.ndarray, "n 4"], crop: Box, picture: Box) -> Bool[np.ndarray, "n"]:
    """Which boxes, XYXY in the crop, end near an edge of it that is no edge of the picture."""
    placed = boxes + np.array([crop[0], crop[1], crop[0], crop[1]])
    at_crop = np.abs(placed - np.array(crop)) <= EDGE_PX
    at_picture = np.abs(placed - np.array(picture)) <= EDGE_PX
    return (at_crop & ~at_picture).any(1)
