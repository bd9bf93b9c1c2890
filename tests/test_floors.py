"""Who may import whom: the table of the README's architecture section, held against the code's own imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "errors": 0,
    "files": 0,
    "option_docs": 0,
    "models": 1,
    "data": 1,
    "kernels": 1,
    "segment": 2,
    "training": 2,
    "compress": 3,
    "quantize": 3,
    "export": 3,
    "bench": 3,
    "evaluate": 3,
    "commands": 4,
    "studies": 4,
    "recipe": 4,
    "pipeline": 4,
    "cli": 4,
    "__main__": 4,
    "__init__": 0,
}
FREE_AMONG_THEMSELVES = {0, 4}
"""The ground floor and the top join freely; between siblings of the other floors nothing may pass."""


def part_of(file: Path) -> str:
    """The part of the project that a file belongs to."""
    relative = file.relative_to(ROOT)
    inside = relative.parts[1:] if relative.parts[0] == "sam_edge" else relative.parts
    return inside[0].removesuffix(".py")


def source_files() -> list[Path]:
    files = [*(ROOT / "sam_edge").rglob("*.py")]
    for folder in ("export", "kernels", "bench"):
        files += (ROOT / folder).rglob("*.py")
    return sorted(file for file in files if not any(parent.is_symlink() for parent in file.parents))


def imported_parts(file: Path) -> set[str]:
    """The parts that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names = [node.module]
            if node.module == "sam_edge":
                names = [f"sam_edge.{alias.name}" for alias in node.names if alias.name in FLOORS]
        found |= {name.split(".")[1] for name in names if name.startswith("sam_edge.")}
    return found


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_from_lower_floors_only(file: Path) -> None:
    here = part_of(file)
    for other in imported_parts(file) - {here}:
        lower = FLOORS[other] < FLOORS[here]
        level = FLOORS[other] == FLOORS[here] and FLOORS[here] in FREE_AMONG_THEMSELVES
        assert lower or level, f"{here} (floor {FLOORS[here]}) imports {other} (floor {FLOORS[other]})"


def test_the_errors_import_nothing() -> None:
    assert imported_parts(ROOT / "sam_edge" / "errors.py") == set()


def test_no_file_shadows_a_library() -> None:
    names = {file.name for file in source_files()}
    assert not names & {"onnx.py", "tensorrt.py", "torch.py", "typer.py", "utils.py"}
