"""An export is finished when it agrees: the same pictures and prompts through two runtimes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from sam_edge.errors import ExportError
from sam_edge.segment.frame import Frame, to_pixels
from sam_edge.segment.prompts import ABSENT, Prompts
from sam_edge.segment.runtime import Runtime

GRID = 9
"""Points that are compared, on a square grid."""


@dataclass(frozen=True)
class Parity:
    """How far two runtimes agree on the same pictures."""

    mask_iou: float
    """Mean IoU of their masks, over pictures, prompts and the four outputs."""
    largest_embedding_error: float
    """Largest difference of embeddings, relative to the reference's largest magnitude."""
    largest_logit_error: float
    """Largest difference of mask logits, relative to the reference's largest magnitude."""
    images: int
    prompts: int
    split_mask_iou: float | None = None
    """The same of masks that came by prepare, predict and upscale, against the reference's whole decoder."""
    largest_split_error: float | None = None
    """The same of their logits."""

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """What a runtime says about one picture."""

    embeddings: Float32[np.ndarray, "1 c g g"]
    logits: Float32[np.ndarray, "1 n 4 h w"]
    iou: Float32[np.ndarray, "1 n 4"]
    """Predicted IoU."""
    split: Float32[np.ndarray, "1 n 4 h w"] | None = None
    """The logits as the split decoder's parts give them, where they were asked for."""


def answers(runtime: Runtime, images: Sequence[np.ndarray], split: bool = False) -> list[Answers]:
    """Embeddings, mask logits and predicted IoU for a fixed set of points and boxes on each picture."""
    found = []
    for image in images:
        pixels, frame = to_pixels(image, runtime.config)
        embeddings, prompts = runtime.encode(pixels), parity_prompts(frame)
        logits, iou = runtime.decode(embeddings, prompts)
        # boxes may take another way through the parts, and would take points with them
        kinds = prompts.part(slice(GRID)), prompts.part(slice(GRID, None))
        parts = np.concat([split_logits(runtime, embeddings, kind) for kind in kinds])[None] if split else None
        found.append(Answers(runtime.host(embeddings), logits, iou, parts))
    return found


def split_logits(runtime: Runtime, embeddings: Any, prompts: Prompts) -> Float32[np.ndarray, "n 4 h w"]:
    """Mask logits about one image by prepare, predict and upscale; the last set comes first, to try the choosing."""
    prediction = runtime.predict(runtime.prepare(embeddings), prompts)
    count = prompts.labels.shape[1]
    logits = runtime.upscale(prediction, np.arange(count)[::-1].repeat(4), np.tile(np.arange(4), count))
    return logits.reshape(count, 4, *logits.shape[1:])[::-1]


def parity_prompts(frame: Frame) -> Prompts:
    """Nine points on a grid, and four boxes, in one batch: the points' sets are padded with absent slots."""
    height, width = frame.input_size
    ys, xs = np.meshgrid(np.array([0.25, 0.5, 0.75]) * height, np.array([0.25, 0.5, 0.75]) * width, indexing="ij")
    points = np.stack([xs.ravel(), ys.ravel()], -1).astype(np.float32)[None, :, None]
    single = Prompts.build(points, np.ones((1, GRID, 1), np.int64))
    boxes = np.array(
        [[0.1, 0.1, 0.6, 0.6], [0.4, 0.1, 0.9, 0.6], [0.1, 0.4, 0.6, 0.9], [0.3, 0.3, 0.7, 0.7]], np.float32
    )
    corners = Prompts.build(boxes=(boxes * np.array([width, height, width, height], np.float32))[None])
    both = np.concat([_padded(single.coords, 0.0), _padded(corners.coords, 0.0)], 1)
    labels = np.concat([_padded(single.labels, ABSENT), _padded(corners.labels, ABSENT)], 1)
    return Prompts(both, labels)


def _padded(values: np.ndarray, fill: float) -> np.ndarray:
    """One more slot per set, so that absent points are part of what is compared."""
    return np.concat([values, np.full_like(values[:, :, :1], fill)], 2)


def compare(wanted: Sequence[Answers], got: Sequence[Answers]) -> Parity:
    """Agreement of `got` with `wanted`."""
    ious = [mask_agreement(a.logits, b.logits) for a, b in zip(wanted, got, strict=True)]
    split = [(a.logits, b.split) for a, b in zip(wanted, got, strict=True) if b.split is not None]
    return Parity(
        mask_iou=float(np.concat(ious).mean()),
        largest_embedding_error=max(_relative(a.embeddings, b.embeddings) for a, b in zip(wanted, got, strict=True)),
        largest_logit_error=max(_relative(a.logits, b.logits) for a, b in zip(wanted, got, strict=True)),
        images=len(ious),
        prompts=wanted[0].logits.shape[1],
        split_mask_iou=float(np.concat([mask_agreement(a, b) for a, b in split]).mean()) if split else None,
        largest_split_error=max(_relative(a, b) for a, b in split) if split else None,
    )


def shown_agreement(wanted: Sequence[Answers], got: Sequence[Answers]) -> float:
    """Mean IoU of the masks that people are shown, by points and by boxes, which count alike.

    Of a point that is the one of three masks that `wanted` predicts best, of a box the single one.
    """
    ious = np.concat([mask_iou(b.logits, a.logits) for a, b in zip(wanted, got, strict=True)])
    best = np.concat([a.iou[:, :GRID, 1:].argmax(-1, keepdims=True) for a in wanted])
    points, boxes = np.take_along_axis(ious[:, :GRID, 1:], best, 2), ious[:, GRID:, 0]
    return float(points.mean() + boxes.mean()) / 2


def require(parity: Parity, smallest_iou: float, what: str) -> None:
    """Raises ExportError when masks, of the whole decoder or of the split one, agree less than `smallest_iou`."""
    for name, iou in ((what, parity.mask_iou), (f"the split decoder of {what}", parity.split_mask_iou)):
        if iou is not None and not iou >= smallest_iou:
            raise ExportError(
                f"{name} disagrees with torch: mean mask IoU {iou:.4f} on {parity.images} pictures is below "
                f"{smallest_iou}; nothing was written. Masks are judged on --images: give photos like yours; "
                "integers agree best in 8 bits with --decoder float."
            )


def mask_agreement(a: Float[np.ndarray, "*n h w"], b: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "n"]:
    """IoU of each pair of masks at logit 0; two empty masks agree."""
    return mask_iou(a, b).ravel()


def mask_iou(a: Float[np.ndarray, "*n h w"], b: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n"]:
    """The same, in the shape of what is compared."""
    first, second = a > 0, b > 0
    common, union = ((one).sum((-2, -1)) for one in (first & second, first | second))
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))
