"""What a weight is worth: first-order and squared-gradient importance (SlimSAM, eq. 3 and 4; hessian pruning).

Gradients are taken picture by picture. The disturbed loss has an expected gradient of zero: what differs from
picture to picture is the information, so absolute values are summed by default (`accumulation`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.errors import CompressionError
from sam_edge.files import atomic_file
from sam_edge.models.checkpoint import read_tensors, save_tensors
from sam_edge.models.sam import EdgeSam
from sam_edge.training.processes import rank, world

Accumulation = Literal["absolute", "signed", "squared"]

SAVE_SECONDS = 120.0
"""Time between saved states of an accumulation."""


@dataclass(frozen=True)
class ImportanceOptions:
    """How gradients become importance."""

    images: int = 1000
    """Pictures that gradients are taken on."""
    accumulation: Literal["absolute", "signed"] = "absolute"
    """Over pictures: `absolute` sums |gradient x weight|, `signed` sums gradients first, as the paper's code does."""
    noise: float = 0.01
    """Standard deviation of the noise that disturbs the embedding."""

    def __post_init__(self) -> None:
        """Raises CompressionError for what no importance can be taken of."""
        if self.images < 1 or not 0 <= self.noise < math.inf:
            raise CompressionError(
                f"importance is taken on at least 1 picture, under noise from 0, got {self.images} and {self.noise}."
            )


def disturbed_loss(model: EdgeSam, pixels: Float[Tensor, "b 3 s s"], noise: float, seed: int) -> Float[Tensor, ""]:
    """Squared error between the embedding and itself plus N(0, noise^2), which is held fixed (eq. 4)."""
    embedding = model.encode(pixels)
    generator = torch.Generator().manual_seed(seed)
    disturbance = noise * torch.randn(embedding.shape, generator=generator, dtype=embedding.dtype)
    return F.mse_loss(embedding, embedding.detach() + disturbance.to(embedding.device))


def accumulated_saliency(
    encoder: nn.Module,
    loss: Callable[[int], Float[Tensor, ""] | None],
    images: int,
    accumulation: Accumulation,
    *,
    state_file: Path | None = None,
    identity: str = "",
    on_image: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Every weight's saliency over `images` losses, by name; a loss of None is a picture without one.

    `signed`: |sum of gradients x weight|; `absolute`: sum of |gradient x weight| (both eq. 3, or 4, by the loss);
    `squared`: sum of squared gradients x squared weight (hessian pruning). The processes of a `torchrun` share the
    pictures. A killed accumulation continues from `state_file`.

    Raises:
        CompressionError: a loss that is not finite, or that depends on no weight.
    """
    weights = dict(encoder.named_parameters())
    trained = {name: weight.requires_grad for name, weight in weights.items()}
    encoder.requires_grad_(True)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    own = state_file.with_name(f"{state_file.name}.{rank()}") if state_file is not None else None
    done = _restore(own, f"{identity} {world()}", sums)
    saved_at = perf_counter()
    try:
        for image in range(rank() + done * world(), images, world()):
            value = loss(image)
            if value is not None:
                _add(sums, weights, value, accumulation)
            done += 1
            if on_image is not None:
                on_image(min(done * world(), images))
            if own is not None and perf_counter() - saved_at > SAVE_SECONDS:
                _save(own, f"{identity} {world()}", sums, done)
                saved_at = perf_counter()
    finally:
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(trained[name])
    if world() > 1:
        for total in sums.values():
            dist.all_reduce(total)
    if own is not None:
        own.unlink(missing_ok=True)
    if accumulation == "absolute":
        return sums
    power = 1 if accumulation == "signed" else 2
    return {name: total.abs() * weights[name].detach().abs() ** power for name, total in sums.items()}


def _add(sums: Mapping[str, Tensor], weights: Mapping[str, Tensor], value: Tensor, accumulation: Accumulation) -> None:
    if not torch.isfinite(value) or value.grad_fn is None:
        raise CompressionError(f"the loss that importance is taken from is {value.item()}: check the model's weights.")
    for weight in weights.values():
        weight.grad = None
    value.backward()
    with torch.no_grad():
        for name, weight in weights.items():
            gradient = weight.grad
            if gradient is None:
                continue
            if accumulation == "signed":
                sums[name].add_(gradient)
            elif accumulation == "squared":
                sums[name].addcmul_(gradient, gradient)
            else:
                sums[name].add_(gradient.mul_(weight).abs_())


def _save(path: Path, identity: str, sums: Mapping[str, Tensor], done: int) -> None:
    with atomic_file(path) as part:
        tensors = {name: total.cpu() for name, total in sums.items()}
        save_tensors(tensors, part, metadata={"identity": identity, "done": str(done)})


def _restore(path: Path | None, identity: str, sums: Mapping[str, Tensor]) -> int:
    """Pictures done so far; a state of other settings is left to be overwritten."""
    if path is None or not path.is_file():
        return 0
    tensors, metadata = read_tensors(path)
    if metadata.get("identity") != identity:
        return 0
    try:
        done = int(metadata["done"])
        for name, total in sums.items():
            total.copy_(tensors[name])
    except (KeyError, ValueError, RuntimeError) as error:
        raise CompressionError(f"{path} is not the state that was saved there: delete it to begin anew.") from error
    return done
