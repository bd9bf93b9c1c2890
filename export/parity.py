"""An export is finished when it agrees: the same pictures and prompts through two runtimes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.errors import ExportError
from sam_edge.models.prompts import ABSENT, Prompts
from sam_edge.segment.frame import Frame, to_pixels
from sam_edge.segment.runtime import Runtime
from sam_edge.training.losses import mask_iou


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

    def as_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Answers:
    """What a runtime says about one picture."""

    embeddings: Float[Tensor, "1 c g g"]
    logits: Float[Tensor, "1 n 4 h w"]


def answers(runtime: Runtime, images: Sequence[np.ndarray]) -> list[Answers]:
    """Embeddings and mask logits for a fixed set of points and boxes on each picture."""
    found = []
    for image in images:
        pixels, frame = to_pixels(image, runtime.config)
        embeddings = runtime.encode(pixels)
        logits, _ = runtime.decode(embeddings, parity_prompts(frame))
        found.append(Answers(torch.as_tensor(embeddings).float().cpu(), logits.float().cpu()))
    return found


def parity_prompts(frame: Frame) -> Prompts:
    """Nine points on a grid, and four boxes, in one batch: the points' sets are padded with absent slots."""
    height, width = frame.input_size
    ys, xs = np.meshgrid(np.array([0.25, 0.5, 0.75]) * height, np.array([0.25, 0.5, 0.75]) * width, indexing="ij")
    points = torch.tensor(np.stack([xs.ravel(), ys.ravel()], -1), dtype=torch.float32)[None, :, None]
    single = Prompts.build(points, torch.ones(1, 9, 1, dtype=torch.long))
    boxes = torch.tensor(
        [[0.1, 0.1, 0.6, 0.6], [0.4, 0.1, 0.9, 0.6], [0.1, 0.4, 0.6, 0.9], [0.3, 0.3, 0.7, 0.7]],
        dtype=torch.float32,
    )
    corners = Prompts.build(boxes=(boxes * torch.tensor([width, height, width, height]))[None])
    both = torch.cat([_padded(single.coords, 0.0), _padded(corners.coords, 0.0)], 1)
    labels = torch.cat([_padded(single.labels, ABSENT), _padded(corners.labels, ABSENT)], 1)
    return Prompts(both, labels)


def _padded(values: Tensor, fill: float) -> Tensor:
    """One more slot per set, so that absent points are part of what is compared."""
    return torch.cat([values, torch.full_like(values[:, :, :1], fill)], 2)


def compare(wanted: Sequence[Answers], got: Sequence[Answers]) -> Parity:
    """Agreement of `got` with `wanted`."""
    ious = [mask_agreement(a.logits, b.logits) for a, b in zip(wanted, got, strict=True)]
    return Parity(
        mask_iou=float(torch.cat(ious).mean()),
        largest_embedding_error=max(_relative(a.embeddings, b.embeddings) for a, b in zip(wanted, got, strict=True)),
        largest_logit_error=max(_relative(a.logits, b.logits) for a, b in zip(wanted, got, strict=True)),
        images=len(ious),
        prompts=wanted[0].logits.shape[1],
    )


def require(parity: Parity, smallest_iou: float, what: str) -> None:
    """Raises ExportError when masks agree less than `smallest_iou`."""
    if not parity.mask_iou >= smallest_iou:
        raise ExportError(
            f"{what} disagrees with torch: mean mask IoU {parity.mask_iou:.4f} on {parity.images} pictures is below "
            f"{smallest_iou}; nothing was written."
        )


def mask_agreement(a: Float[Tensor, "*n h w"], b: Float[Tensor, "*n h w"]) -> Float[Tensor, "n"]:
    """IoU of each pair of masks at logit 0; two empty masks agree."""
    return mask_iou(a, (b > 0).float()).flatten()


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
