"""`sam-edge models`: known names."""

from dataclasses import asdict
from typing import Any

from sam_edge.models.cost import cost
from sam_edge.models.known import KNOWN


def models() -> list[dict[str, Any]]:
    """Known names with size, cost, source and licence."""
    return [
        {
            "name": known.name,
            "summary": known.summary,
            **asdict(cost(known.config)),
            "source": known.source,
            "licence": known.licence,
        }
        for known in KNOWN.values()
    ]
