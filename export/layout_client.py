"""What a tool does with the files of a layout, by the table: by this an export is proven before it is kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image

from sam_edge.errors import ExportError
from sam_edge.export.layouts import CPP_SIZE, Layout
from sam_edge.export.parity import mask_agreement
from sam_edge.runtimes.onnx_runtime import OnnxRuntime, session_options
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.frame import Frame, normalise
from sam_edge.segment.masks import mask_of
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.prompts import BACKGROUND, BOX_END, BOX_START, FOREGROUND, NOT_A_POINT, Prompts
from sam_edge.segment.scaling import Scaling, interpolated

SMALLEST_IOU = {"fp32": 0.99, "fp16": 0.98, "int8": 0.95}
"""Mean IoU with the predictor's masks below which a layout is not written, by precision."""
ASKED: tuple[tuple[tuple[tuple[float, float], int], ...], ...] = (
    (((0.5, 0.5), FOREGROUND),),
    (((0.4, 0.45), FOREGROUND), ((0.85, 0.8), BACKGROUND)),
    (((0.25, 0.2), BOX_START), ((0.8, 0.75), BOX_END)),
)
"""Three prompts: points, as shares of the picture's width and height, and their labels."""


class LayoutClient:
    """Encodes a picture, and answers prompts about it."""

    def __init__(self, folder: Path, layout: Layout, config: ModelConfig, precision: str) -> None:
        """`folder` holds the files of a layout, made of a model of this config."""
        self._layout, self._config = layout, config
        self._encoder, self._decoder = (
            ort.InferenceSession(
                folder / file, session_options({"integers": precision == "int8"}), providers=["CPUExecutionProvider"]
            )
            for file in layout.graph_files(precision)
        )

    def set_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Encode a picture; returns what the tool hands on of it, in whose pixels prompts and masks are."""
        side = self._layout.side or self._config.image_size
        if self._layout.pixels == "planes":
            height, width = CPP_SIZE
        else:
            height, width = Frame.of(image.shape[0], image.shape[1], side).input_size
        seen = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        planes = seen.transpose(2, 0, 1)[None]
        given = {
            "normalised": lambda: normalise(planes, self._config.replace(image_size=side)),
            "rows": lambda: seen.astype(np.float32),
            "planes": lambda: np.ascontiguousarray(planes),
        }[self._layout.pixels]()
        self._embeddings = self._encoder.run(None, {self._layout.image: given})
        self._frame = Frame.of(height, width, side)
        return seen

    def predict(self, points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "c h2 w2"]:
        """The masks of one prompt, in pixels of what `set_image` returned; boxes are points of labels 2 and 3."""
        layout = self._layout
        height, width = self._frame.original_size
        side = layout.mask_side or self._config.mask_size
        # most tools end every prompt so
        coords = np.concat([points, np.zeros((1, 2))]).astype(np.float32)[None]
        marks = np.append(labels, NOT_A_POINT)[None]
        if layout.batched:
            coords, marks = coords[None], marks[None]
        values = {
            "embeddings": self._embeddings[0],
            "positions": self._embeddings[-1],
            "coords": coords,
            "labels": marks.astype(np.int64 if layout.batched else np.float32),
            "mask": np.zeros((1, 1, side, side), np.float32),
            "has_mask": np.zeros(1, np.float32),
            "size": np.array([height, width], np.float32),
        }
        names = list(layout.outputs.values())
        given = {name: values[role] for role, name in layout.inputs.items()}
        found = dict(zip(layout.outputs, self._decoder.run(names, given), strict=True))
        if "masks" in found:
            return np.asarray(found["masks"][0] > 0)
        if "cropped" in found:
            mask = np.zeros((1, height, width), bool)
            left, top, right, bottom = (int(found[edge][0]) for edge in ("left", "top", "right", "bottom"))
            mask[:, top : bottom + 1, left : right + 1] = found["cropped"][0] > 0
            return mask
        logits = found.get("square", found["low_res"])
        return self.enlarged(logits.reshape(-1, *logits.shape[-2:]))

    def enlarged(self, logits: Float32[np.ndarray, "c h w"]) -> Bool[np.ndarray, "c h2 w2"]:
        """Masks at the picture's size, by tools that are given no such."""
        side = self._layout.mask_side or logits.shape[-1]
        if "square" not in self._layout.outputs and logits.shape[-1] != side:
            # what the graph does for tools that expect this many cells
            logits = np.stack([interpolated(interpolated(one, side).T, side).T for one in logits])
        scaling = Scaling.of(self._frame, logits.shape[-1])
        return np.stack([mask_of(np.ascontiguousarray(one), scaling) for one in logits])


def expected(
    predictor: SamPredictor, layout: Layout, points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, "n"]
) -> Float32[np.ndarray, "1 c h w"]:
    """The logits of the masks that the tool shows, by our predictor, of the picture that was set in it."""
    frame = predictor.frame
    assert frame is not None
    placed, corners = frame.to_input(points.astype(np.float32)), np.isin(labels, (BOX_START, BOX_END))
    clicks, marks = (placed[~corners][None], labels[~corners][None]) if (~corners).any() else (None, None)
    box = placed[corners].reshape(1, 4) if corners.any() else None
    one, three = (predictor.predict_low_res(clicks, marks, box, multimask_output=several) for several in (False, True))
    logits, iou = (np.concat(parts, 1) for parts in zip(one, three, strict=True))
    if layout.masks == "all":
        return logits
    if layout.masks == "three":
        return logits[:, 1:]
    alone = Prompts(placed[None, None], labels[None, None]).single_points.all()
    best = 1 + int(iou[0, 1:].argmax()) if alone else 0
    return logits[:, best : best + 1]


def prove(
    out: Path, layout: Layout, name: str, runtime: OnnxRuntime, precision: str, images: Sequence[np.ndarray]
) -> float:
    """Mean IoU of a layout's masks with the predictor's on the very pixels that the tool hands its encoder.

    Raises:
        ExportError: it is below `SMALLEST_IOU`.
    """
    client, predictor = LayoutClient(out, layout, runtime.config, precision), SamPredictor(runtime)
    ious = []
    for image in images:
        seen = client.set_image(image)
        predictor.set_image(seen)
        for asked in ASKED:
            points = np.array([point for point, _ in asked]) * seen.shape[1::-1]
            labels = np.array([label for _, label in asked])
            logits = expected(predictor, layout, points, labels)
            # who is given low resolution alone enlarges it in a way of its own
            large = {"masks", "square", "cropped"} & set(layout.outputs)
            wanted = predictor.masks(logits)[0] if large else client.enlarged(logits[0])
            ious.append(mask_agreement(wanted, client.predict(points, labels)))
    iou = float(np.concat(ious).mean())
    if not iou >= SMALLEST_IOU[precision]:
        raise ExportError(
            f"layout {name} disagrees with the predictor: mean mask IoU {iou:.4f} on {len(images)} pictures is below "
            f"{SMALLEST_IOU[precision]}; nothing was written. Give photos like yours as --images."
        )
    return iou
