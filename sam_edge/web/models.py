"""A MODEL's graphs for the page, where no workshop is needed to have them."""

from pathlib import Path

from sam_edge.runtimes.folder import names_exported_folder, shipped_graphs


def graphs_at_hand(spec: str, precision: str) -> Path | None:
    """A MODEL's exported folder: itself, or what ships of a known one in integers; None for what is to be exported."""
    if names_exported_folder(spec):
        return Path(spec).expanduser()
    return shipped_graphs(spec) if precision == "int8" else None


def name_of(spec: str) -> str:
    """What a MODEL is called on the page: its folder's or file's name, or its own."""
    return Path(spec).expanduser().resolve().name if Path(spec).expanduser().exists() else spec.replace(":", "-")
