"""A step of a model's lineage: how it came about, and what became less."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sam_edge.models.cost import cost
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import KNOWN


def add_step(
    model: EdgeSam,
    step: str,
    settings: dict[str, Any],
    seed: int,
    parent_sha256: str,
    data: Sequence[str],
    result: dict[str, Any] | None = None,
    parent: str = "",
) -> None:
    """Write into the model's lineage what has just made it, and what was measured then.

    `parent` is the MODEL it was made of: of a known one the name is kept, by which its licence is found.
    """
    model.config = model.config.with_step(
        {
            "step": step,
            "settings": settings,
            "seed": seed,
            "parent_sha256": parent_sha256,
            **({"parent": parent} if parent in KNOWN else {}),
            "data": list(data),
            **({} if result is None else {"result": result}),
        }
    )


def sizes(after: ModelConfig, before: ModelConfig) -> dict[str, Any]:
    """What a model consists of, for a command's result, and what its parent did."""
    now = cost(after)
    return {
        "parameters": now.parameters,
        "encoder_macs": now.encoder_macs,
        "encoder_macs_with_attention": now.encoder_macs_with_attention,
        "parent": asdict(cost(before)),
    }
