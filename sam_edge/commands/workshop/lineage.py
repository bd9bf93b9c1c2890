"""A step of a model's lineage."""

from collections.abc import Sequence
from typing import Any

from sam_edge.models.sam import EdgeSam
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
