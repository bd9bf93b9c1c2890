"""A step of a model's lineage."""

from collections.abc import Sequence
from typing import Any

from sam_edge.models.sam import EdgeSam


def add_step(
    model: EdgeSam,
    step: str,
    settings: dict[str, Any],
    seed: int,
    parent_sha256: str,
    data: Sequence[str],
    result: dict[str, Any] | None = None,
) -> None:
    """Write into the model's lineage what has just made it, and what was measured then."""
    model.config = model.config.with_step(
        {
            "step": step,
            "settings": settings,
            "seed": seed,
            "parent_sha256": parent_sha256,
            "data": list(data),
            **({} if result is None else {"result": result}),
        }
    )
