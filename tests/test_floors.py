"""Who may import whom: the table of the README's architecture section, held against the code's own imports."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DEVICE = {
    "errors": 0,
    "files": 0,
    "journal": 0,
    "halves": 0,
    "verbs": 0,
    "paired": 0,
    "segment": 0,
    "data": 0,
    "kernels": 0,
    "runtimes": 1,
    "evaluate": 2,
    "bench": 2,
    "web": 2,
    "commands": 4,
    "cli": 4,
    "api": 4,
    "__main__": 4,
    "__init__": 4,
}
"""Floors of what runs on a device: NumPy, Pillow, pycocotools, and one runtime."""
WORKSHOP = {
    "scenes": 1,
    "models": 1,
    "training": 2,
    "compress": 3,
    "quantize": 3,
    "export": 3,
    "commands/workshop": 4,
    "studies": 4,
    "hub": 4,
}
"""Floors of what makes models, with torch and its company."""
WORKSHOP_FILES = {
    "bench/integers",
    "bench/plots",
    "bench/report",
    "bench/report_html",
    "bench/report_markdown",
    "bench/report_widths",
}
"""Files of a device's folder that are the workshop's: they draw, or quantize by other tools."""
FREE_AMONG_THEMSELVES = {0, 4}
"""The ground floor and the top join freely; between siblings of the other floors nothing may pass."""
DOORS = {
    "runtimes/open": {"export/opening"},
    "data/open": {"scenes/synthetic"},
    "commands/device/models": {"models/cost"},
}
"""Where the device half leads into the workshop, by `halves.workshop`, if that is installed."""
ABSENT = (
    "torch",
    "torchvision",
    "segment_anything",
    "torch_pruning",
    "timm",
    "onnx",
    "onnxscript",
    "cv2",
    "matplotlib",
    "safetensors",
    "huggingface_hub",
    "transformers",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "tensorrt",
    "pycuda",
    "cuda",
)
"""What importing the device half must not need."""


def name_of(file: Path) -> str:
    """A file of the project as `part/name`, without its ending."""
    relative = file.relative_to(ROOT).with_suffix("")
    inside = relative.parts[1:] if relative.parts[0] == "sam_edge" else relative.parts
    return "/".join(part for part in inside if part != "__init__" or len(inside) == 1)


def floor_of(name: str) -> int:
    """The floor of a file or folder by its name."""
    whole = {**DEVICE, **WORKSHOP}
    first = name.split("/")[0]
    return whole["/".join(name.split("/")[:2])] if "/".join(name.split("/")[:2]) in whole else whole[first]


def is_workshop(name: str) -> bool:
    """Whether a file belongs to the half that needs torch."""
    return name in WORKSHOP_FILES or any(name == part or name.startswith(f"{part}/") for part in WORKSHOP)


@cache
def source_files() -> list[Path]:
    files = [*(ROOT / "sam_edge").rglob("*.py")]
    for folder in ("export", "kernels", "bench"):
        files += (ROOT / folder).rglob("*.py")
    return sorted(file for file in files if not any(parent.is_symlink() for parent in file.parents))


@cache
def all_names() -> frozenset[str]:
    return frozenset(name_of(file) for file in source_files())


def module_name(name: str) -> str:
    return f"sam_edge.{name.replace('/', '.')}" if name != "__init__" else "sam_edge"


def named_modules(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        assert node.level == 0, "relative import"
        # `from sam_edge.commands import export` names a module by its last word
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imported(file: Path, at_start: bool = False) -> set[str]:
    """The files or folders of the project that a file imports, wherever in it, or when it is imported itself."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if at_start else ast.walk(tree)
    names = {name.removeprefix("sam_edge.") for node in nodes for name in named_modules(node) if "sam_edge." in name}
    return {name.replace(".", "/") for name in names if name.replace(".", "/") in all_names()}


def doors(file: Path) -> set[str]:
    """What a file asks `halves.workshop` for."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "workshop":
            (module, *_) = node.args
            assert isinstance(module, ast.Constant), "the door's module must be written out"
            found.add(str(module.value).removeprefix("sam_edge.").replace(".", "/"))
    return found


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_from_lower_floors_only(file: Path) -> None:
    here = name_of(file)
    for other in imported(file) - {here}:
        same = other.split("/")[0] == here.split("/")[0]
        lower = floor_of(other) < floor_of(here)
        level = floor_of(other) == floor_of(here) and floor_of(here) in FREE_AMONG_THEMSELVES
        assert same or lower or level, f"{here} (floor {floor_of(here)}) imports {other} (floor {floor_of(other)})"


@pytest.mark.parametrize("file", source_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_what_runs_on_a_device_imports_nothing_of_the_workshop(file: Path) -> None:
    here = name_of(file)
    assert doors(file) == DOORS.get(here, set())
    if is_workshop(here):
        return
    # the command line and the public surface join both halves, but not before a command or a verb is called
    reached = imported(file, at_start=here.startswith("cli") or here in ("api", "__init__"))
    assert not {other for other in reached if is_workshop(other)}


def test_every_module_of_the_device_half_imports_without_torch_and_its_company() -> None:
    modules = [module_name(name_of(file)) for file in source_files() if not is_workshop(name_of(file))]
    script = f"""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for module in {modules!r}:
    if module not in ("sam_edge.bench.memory_launcher", "sam_edge.bench.encoder_turn"):
        importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_errors_import_nothing() -> None:
    assert imported(ROOT / "sam_edge" / "errors.py") == set()


def test_no_file_shadows_a_library() -> None:
    names = {file.name for file in source_files()}
    assert not names & {"onnx.py", "tensorrt.py", "torch.py", "typer.py", "utils.py"}
