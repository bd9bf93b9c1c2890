"""Prompts as tensors, for models that are trained or run in torch."""

import torch

from sam_edge.segment.prompts import Prompts


def on_device(prompts: Prompts, device: torch.device | str) -> Prompts:
    """The same prompts as tensors on `device`, whichever library's arrays they are."""
    parts = (prompts.coords, prompts.labels, prompts.masks)
    return Prompts(*(None if part is None else torch.as_tensor(part, device=device) for part in parts))
