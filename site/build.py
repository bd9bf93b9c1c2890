"""Builds the documentation: `python docs/build.py [--generate]`; what is generated goes to docs/generated.

The reference of commands is made from the command line's own options, the drawing of the architecture from the imports,
the figures by the code that they show. Then Zensical builds `site`, and a warning of its is an error.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "generated"
MAPPED = ("export", "kernels", "bench")
FLOORS = (
    (("cli", "api", "hub"), ("pipeline", "studies")),
    (("commands/device",), ("commands/workshop",)),
    ((), ("compress", "quantize", "export")),
    (("evaluate", "bench", "web"), ("training",)),
    (("runtimes",), ("models", "scenes")),
    (("segment", "data", "kernels"), ()),
)
"""From the top; on each floor the device half and the workshop. `errors`, `files` and the like are everybody's."""
DEVICE, WORKSHOP, MARK, FAINT = "#dcecfb", "#fbe8d3", "#c2185b", "#9999aa"
"""Colours."""
SVG = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif"'


def main(arguments: list[str]) -> None:
    """Generate, and build the site unless `--generate` is asked for alone."""
    generate(GENERATED)
    if arguments != ["--generate"]:
        sys.exit(
            subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=ROOT, check=False).returncode
        )


def generate(folder: Path) -> None:
    """Write all that is generated."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cli.md").write_text("\n".join(commands()) + "\n", encoding="utf-8")
    (folder / "imports.svg").write_text(drawing(imports()), encoding="utf-8")
    (folder / "hierarchy.svg").write_text(hierarchy(), encoding="utf-8")
    (folder / "twin.svg").write_text(twin(), encoding="utf-8")


# commands


def commands() -> Iterator[str]:
    """Every command with its options, in Markdown, from the command line itself."""
    from sam_edge.cli import COMMANDS, MAKE, MEASURE, USE, application
    from sam_edge.cli.examples import EXAMPLES

    whole = typer.main.get_command(application())
    context = typer.Context(whole)
    yield "# Commands"
    yield "\nMade from the command line's own options: `sam-edge COMMAND --help` says the same.\n"
    for heading in (USE, MAKE, MEASURE):
        yield f"\n## {heading}\n"
        for name, (panel, _) in COMMANDS.items():
            if panel != heading:
                continue
            command = whole.get_command(context, name)  # type: ignore[attr-defined]
            yield f"\n### sam-edge {name}\n"
            yield f"{_text(command.help)}\n"
            if name == "study":
                for inner in command.list_commands(context):
                    yield f"- `sam-edge study {inner}`: {_text(command.get_command(context, inner).help)}"
                continue
            yield "```sh"
            yield from (f"sam-edge {example}" for example in EXAMPLES[name])
            yield "```\n"
            yield from _options(command)


def _options(command: typer.core.TyperCommand) -> Iterator[str]:
    context = typer.Context(command)
    yield "| | |"
    yield "| --- | --- |"
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if parameter.name != "help" and record is not None:
            yield f"| `{_cell(record[0])}` | {_cell(record[1]).replace('<', '&lt;')} |"
    yield ""


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


# the architecture


def imports() -> set[tuple[str, str]]:
    """Which part of the project imports which, wherever in a file."""
    parts = {part for floor in FLOORS for half in floor for part in half}
    found = set()
    for top in (ROOT / "sam_edge", *(ROOT / name for name in MAPPED)):
        for file in sorted(top.rglob("*.py")):
            if any(parent.is_symlink() for parent in file.parents):
                continue
            relative = file.relative_to(ROOT).with_suffix("").as_posix().removeprefix("sam_edge/")
            for name in _imported(file):
                one, other = _part(relative, parts), _part(name, parts)
                if one and other and one != other:
                    found.add((one, other))
    return found


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: Iterable[str] = ()
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
        for name in names:
            if name.startswith("sam_edge."):
                yield name.removeprefix("sam_edge.").replace(".", "/")


def _part(name: str, parts: set[str]) -> str | None:
    first, _, rest = name.partition("/")
    both = f"{first}/{rest.split('/')[0]}"
    return both if both in parts else first if first in parts else None


def drawing(edges: set[tuple[str, str]]) -> str:
    """The parts floor by floor; an arrow for each import that no longer way of imports makes plain."""
    row, width, height, half = 92, 128, 34, 520
    places: dict[str, tuple[float, float]] = {}
    for floor, halves in enumerate(FLOORS):
        for side, names in enumerate(halves):
            for at, name in enumerate(names):
                places[name] = (side * half + half * (at + 0.5) / max(len(names), 1), 60 + floor * row)
    # a segment of the ground floor is everybody's: it lies under both halves
    lines = []
    for one, other in sorted(_reduced(edges)):
        (x0, y0), (x1, y1) = places[one], places[other]
        if y0 == y1:
            bend = f"M{x0},{y0 - height / 2} C{x0},{y0 - 44} {x1},{y1 - 44} {x1},{y1 - height / 2}"
        elif y0 > y1:
            bend = f"M{x0 + 30},{y0 - height / 2} C{x0 + 30},{y0 - 50} {x1 + 30},{y1 + 50} {x1 + 30},{y1 + height / 2}"
        else:
            bend = f"M{x0},{y0 + height / 2} C{x0},{y0 + 50} {x1},{y1 - 50} {x1},{y1 - height / 2}"
        lines.append(f'<path d="{bend}" marker-end="url(#tip)"><title>{one} imports {other}</title></path>')
    boxes = [
        f'<rect x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="6" '
        f'fill="{DEVICE if x < half else WORKSHOP}"/><text x="{x}" y="{y + 5}">{name}</text>'
        for name, (x, y) in places.items()
    ]
    tall = 60 + len(FLOORS) * row - 30
    return "\n".join(
        (
            f'<svg {SVG} viewBox="0 0 {2 * half} {tall}" font-size="14">',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0,0 L8,4 L0,8 z" fill="#667"/></marker></defs>',
            f'<rect width="{2 * half}" height="{tall}" fill="#fff"/>',
            '<g text-anchor="middle" font-weight="bold" fill="#445">',
            f'<text x="{half / 2}" y="24">device: NumPy and one runtime</text>',
            f'<text x="{1.5 * half}" y="24">workshop: torch</text></g>',
            f'<line x1="{half}" y1="8" x2="{half}" y2="{tall - 8}" stroke="#99a" stroke-dasharray="5 5"/>',
            '<g fill="none" stroke="#889" stroke-width="1.1" opacity="0.75">',
            *lines,
            '</g><g stroke="#556" stroke-width="1">',
            *(box[: box.index("<text")] for box in boxes),
            '</g><g text-anchor="middle" fill="#112">',
            *(box[box.index("<text") :] for box in boxes),
            "</g></svg>",
        )
    )


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without the edges that a longer way already shows."""

    def reached(start: str, without: tuple[str, str]) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            here = waiting.pop()
            for edge in edges:
                if edge[0] == here and edge != without and edge[1] not in seen:
                    seen.add(edge[1])
                    waiting.append(edge[1])
        return seen

    return {edge for edge in edges if edge[1] not in reached(edge[0], edge)}


# figures


def hierarchy(points_per_side: int = 16, cell: int = 20) -> str:
    """Which points of a grid the hierarchical strategy asks first."""
    from sam_edge.segment.grid import first_pass, regular_grid

    grid = regular_grid(points_per_side)
    first = set(first_pass(grid).tolist())
    side = points_per_side * cell
    dots = [
        f'<circle cx="{x * side:.1f}" cy="{y * side:.1f}" r="{5 if index in first else 2}" '
        f'fill="{MARK if index in first else FAINT}"/>'
        for index, (x, y) in enumerate(grid)
    ]
    return "\n".join(
        (
            f'<svg {SVG} viewBox="0 0 {side} {side}" width="{side}">',
            f'<rect width="{side}" height="{side}" fill="#fff" stroke="#99a"/>',
            *dots,
            "</svg>",
        )
    )


def twin(bits: int = 4, width: int = 640, height: int = 150) -> str:
    """Codes of a twin grid behind a softmax beside those of one step over the same range."""
    import numpy as np
    import torch

    from sam_edge.models.grids import TwinGrid

    shift = 3
    grid = TwinGrid.unsigned(1.0 / 2 ** (bits - 1), shift, bits)
    x = torch.linspace(0, 1, 20001)
    twice = np.unique(sum(grid.branches(x)).numpy().round(6))
    once = np.arange(2**bits) / (2**bits - 1)
    rows = [(f"twin scales, {bits} bits", twice, 45), (f"one scale, {bits} bits", once, 110)]
    marks = []
    for name, values, y in rows:
        marks.append(
            f'<text x="10" y="{y - 18}">{name}</text><line x1="10" x2="{width - 10}" y1="{y}" y2="{y}" stroke="#99a"/>'
        )
        places = [f"{10 + value * (width - 20):.1f}" for value in values if value <= 1]
        marks += [f'<path d="M{x},{y - 9} V{y + 9}" stroke="{MARK}"/>' for x in places]
    return "\n".join(
        (
            f'<svg {SVG} viewBox="0 0 {width} {height}" width="{width}" font-size="13">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *marks,
            "</svg>",
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
