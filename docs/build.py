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
    (("cli", "api"), ("hub", "studies")),
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
    for figure in (hierarchy, twin, alignment, hard_points):
        (folder / f"{figure.__name__}.svg").write_text(figure(), encoding="utf-8")


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
    row, width, height, half = 92, 150, 34, 520
    places: dict[str, tuple[float, float]] = {}
    for floor, halves in enumerate(FLOORS):
        for side, names in enumerate(halves):
            for at, name in enumerate(names):
                places[name] = (side * half + half * (at + 0.5) / max(len(names), 1), 76 + floor * row)
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
    tall = 76 + len(FLOORS) * row - 30
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
    left = set(edges)
    for edge in sorted(edges):
        if edge[1] in _reached(edge[0], left - {edge}):
            left.remove(edge)
    return left


def _reached(start: str, edges: set[tuple[str, str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        here = waiting.pop()
        further = {other for one, other in edges if one == here} - seen
        seen |= further
        waiting += further
    return seen


# figures


def hierarchy(points_per_side: int = 16, cell: int = 20) -> str:
    """Which points of a grid the hierarchical strategy asks first."""
    from sam_edge.segment.grid import first_pass, regular_grid

    grid = regular_grid(points_per_side)
    first = set(first_pass(grid).tolist())
    side = points_per_side * cell
    return _svg(side, side, [_dot(x * side, y * side, index in first) for index, (x, y) in enumerate(grid)])


def twin(bits: int = 4, width: int = 640, height: int = 150) -> str:
    """Values of a twin grid behind a softmax beside those of one step over the same range."""
    import torch

    from sam_edge.models.grids import TwinGrid

    grid = TwinGrid.unsigned(1.0 / 2 ** (bits - 1), shift=3, bits=bits)
    fine, coarse = grid.branches(torch.linspace(0, 1, 20001))
    twice = sorted(set((fine + coarse).tolist()))
    once = [code / (2**bits - 1) for code in range(2**bits)]
    parts = []
    for name, values, y in ((f"twin scales, {bits} bits", twice, 45), (f"one scale, {bits} bits", once, 110)):
        parts.append(f'<text x="10" y="{y - 18}">{name}</text>')
        parts.append(f'<path d="M10,{y} H{width - 10}" stroke="{FAINT}"/>')
        places = [f"{10 + value * (width - 20):.1f}" for value in values]
        parts += [f'<path d="M{x},{y - 9} V{y + 9}" stroke="{MARK}"/>' for x in places]
    return _svg(width, height, parts)


def alignment(epochs: int = 10, shown: int = 20, width: int = 640, height: int = 210) -> str:
    """Alpha of SlimSAM's two alignments over the epochs of a stage, the first ten of which align."""
    from sam_edge.compress.distil import Alignment

    def place(epoch: int, alpha: float) -> str:
        return f"{40 + epoch * (width - 60) / shown:.1f},{180 - 150 * alpha:.1f}"

    parts = [f'<path d="M40,20 V180 H{width - 20}" fill="none" stroke="{FAINT}"/>']
    parts += [f'<text x="8" y="{184 - 150 * alpha:.0f}">{alpha:g}</text>' for alpha in (0, 0.5, 1)]
    parts.append(f'<text x="{width - 60}" y="200">epoch</text>')
    for kind, colour, y in (("bottleneck", MARK, 40), ("embedding", "#1565c0", 60)):
        weight = Alignment(None, kind, epochs).weight  # type: ignore[arg-type]
        line = " ".join(place(epoch, weight(epoch)) for epoch in range(shown + 1))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        number = "eq. 6" if kind == "bottleneck" else "eq. 8"
        parts.append(f'<text x="{width - 230}" y="{y}" fill="{colour}">{kind} aligning ({number})</text>')
    return _svg(width, height, parts)


def hard_points(side: int = 320, cells: int = 64, points: int = 60) -> str:
    """Points of the next round, between a mask that is wanted and one that was predicted."""
    import torch

    from sam_edge.compress.hard_prompts import next_points

    y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    wanted = ((x - 30) / 24) ** 2 + ((y - 32) / 18) ** 2 < 1
    predicted = ((x - 38) / 20) ** 2 + ((y - 28) / 20) ** 2 < 1
    uniform = (torch.arange(points) + 0.5) / points
    drawn, _ = next_points(predicted.expand(points, -1, -1), wanted.expand(points, -1, -1), uniform, negatives=False)
    scale = side / cells
    shapes = ((30, 32, 24, 18, DEVICE, "M_gt", 34, 190), (38, 28, 20, 20, WORKSHOP, "M_i", 250, 90))
    parts = [
        f'<ellipse cx="{cx * scale}" cy="{cy * scale}" rx="{rx * scale}" ry="{ry * scale}" fill="{fill}" '
        f'fill-opacity="0.8" stroke="{FAINT}"/>'
        for cx, cy, rx, ry, fill, *_ in shapes
    ]
    parts += [_dot((column + 0.5) * scale, (row + 0.5) * scale, True, 2.5) for column, row in drawn.tolist()]
    parts += [f'<text x="{at}" y="{down}">{name}</text>' for *_, name, at, down in shapes]
    return _svg(side, side, parts)


def _dot(x: float, y: float, marked: bool, radius: float = 5) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius if marked else 2}" fill="{MARK if marked else FAINT}"/>'


def _svg(width: int, height: int, parts: Iterable[str]) -> str:
    head = f'<svg {SVG} viewBox="0 0 {width} {height}" width="{width}" font-size="13">'
    return "\n".join((head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>"))


if __name__ == "__main__":
    main(sys.argv[1:])
