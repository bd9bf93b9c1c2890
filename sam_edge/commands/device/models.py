"""`sam-edge models`: known names."""

from dataclasses import asdict, fields
from typing import Any

from sam_edge.halves import workshop, workshop_is_here
from sam_edge.runtimes.folder import ExportedFolder, shipped_graphs
from sam_edge.segment.cost import Cost
from sam_edge.segment.known import KNOWN, KnownModel


def models() -> list[dict[str, Any]]:
    """Known names with size, cost, source and licence; costs are counted by torch, or known of what ships as graphs."""
    unknown = dict.fromkeys(field.name for field in fields(Cost))
    found = []
    for known in KNOWN.values():
        counted = _cost(known)
        found.append(
            {
                "name": known.name,
                "summary": known.summary,
                **(unknown if counted is None else asdict(counted)),
                "source": known.source,
                "licence": known.licence,
            }
        )
    return found


def _cost(known: KnownModel) -> Cost | None:
    if workshop_is_here():
        counted: Cost = workshop("sam_edge.models.cost", "counting").cost(known.config)
        return counted
    graphs = shipped_graphs(known.name)
    return None if graphs is None else ExportedFolder.read(graphs).cost
