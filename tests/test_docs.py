"""The documentation: what it names exists, its links lead somewhere, its commands parse, and its site builds."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import typer

from sam_edge.cli import COMMANDS, application
from sam_edge.cli.study import MODULES
from tests.checkout import copied, elsewhere

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "generated" not in page.parts]
EQUATIONS = {"SlimSAM": 8, "TinySAM": 9}
"""Numbered equations of each paper."""


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated(build: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="a figure is made by the workshop")
    folder = tmp_path_factory.mktemp("generated")
    build.generate(folder)
    return folder


def defined(file: Path, name: str) -> bool:
    """Whether a file defines a function or class, or a class of it a method."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`([\w/]+\.py)::([\w.]+)`", text):
        assert (ROOT / file).is_file(), file
        assert defined(ROOT / file, name), f"{file} has no {name}"
    for file in re.findall(r"`((?:sam_edge|export|kernels|bench|tests|docs)/[a-z_/]+\.[a-z]+)`", text):
        assert (ROOT / file).exists(), file


def test_every_equation_of_the_papers_is_a_function() -> None:
    found: dict[str, set[int]] = {paper: set() for paper in EQUATIONS}
    for page in (ROOT / "docs" / "explanation").glob("*.md"):
        paper = None
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.split(" | ")]
            if (heading := cells[0].removeprefix("|").strip()) in EQUATIONS:
                paper = heading
            if paper and (numbers := re.match(r"\| eq\. ([\d, ]+)", line)):
                assert "::" in cells[-1], f"{page.name}: {line}"
                found[paper] |= {int(number) for number in numbers[1].split(",")}
    assert found == {paper: set(range(1, count + 1)) for paper, count in EQUATIONS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path, build: ModuleType) -> None:
    made = {"cli.md", "imports.svg", "hierarchy.svg", "twin.svg", "alignment.svg", "hard_points.svg"}
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file = (page.parent / target.partition("#")[0]).resolve()
        assert file.exists() or (file.parent == build.GENERATED and file.name in made), target


def test_what_is_generated_is_whole(generated: Path, build: ModuleType) -> None:
    reference = (generated / "cli.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"### sam-edge {name}\n" in reference
    for name in MODULES:
        assert f"`sam-edge study {name}`" in reference
    app = typer.main.get_command(application(("quantize",)))
    for parameter in app.commands["quantize"].params:
        assert parameter.name == "help" or f"| `{parameter.opts[0]}" in reference or "MODEL" in reference
    names = {name for floor in build.FLOORS for half in floor for name in half}
    drawing = ElementTree.parse(generated / "imports.svg")
    assert names <= {element.text for element in drawing.iter() if element.text}
    first = [dot for dot in ElementTree.parse(generated / "hierarchy.svg").iter() if dot.get("fill") == build.MARK]
    assert len(first) == 16 * 16 / 16


def test_the_drawing_shows_what_is_imported(build: ModuleType) -> None:
    edges = build.imports()
    assert {("cli", "commands/device"), ("compress", "training"), ("runtimes", "kernels")} <= edges
    assert ("segment", "models") not in edges
    # nothing is lost by leaving out what a longer way shows
    assert closure(build._reduced(edges)) == closure(edges)


def closure(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    found = set(edges)
    while more := {(one, far) for one, near in found for start, far in edges if near == start} - found:
        found |= more
    return found


def commands(page: Path) -> list[str]:
    """The lines of sam-edge's in a page's blocks of shell, each on its own."""
    lines = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in ("sh", "console"):
            joined = block.replace("\\\n", " ")
            lines += [part for line in joined.splitlines() for part in re.split(r" && |; do |; done", line)]
    lines = [line.removeprefix("$ ").partition(" #")[0].strip() for line in lines]
    return [line for line in lines if line.startswith("sam-edge ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_parses(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.main.get_command(application())
    for line in commands(page):
        arguments = shlex.split(line)[1:]
        assert arguments[0] in COMMANDS, line
        if arguments[0] == "study":
            assert arguments[1] in MODULES, line
        elif "..." not in arguments:
            # what an option claims is let go of
            with app.commands[arguments[0]].make_context(arguments[0], arguments[1:]):
                pass


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def shown(block: str) -> list[tuple[str, list[str]]]:
    """Each command of a block of console, and the lines shown behind it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:].partition(" #")[0].strip(), []))
        else:
            found[-1][1].append(line)
    return found


def plain(line: str) -> str:
    """A line without its numbers, which belong to a machine and a model."""
    return re.sub(r"[\d.]+( [kMG]?B)?", "#", line).replace("masks", "mask")


def held(lines: list[str], said: str) -> None:
    """What is shown was said, in this order; `...` stands for anything."""
    rest = [plain(line) for line in said.splitlines()]
    for line in lines:
        if line != "...":
            assert plain(line) in rest, f"{line!r} is not in {said!r}"
            rest = rest[rest.index(plain(line)) + 1 :]


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="ONNX Runtime is not installed")
def test_the_readme_begins_with_what_runs(sam_edge, tmp_path, monkeypatch) -> None:
    """A photo and its first mask; the slow test runs all commands in a new environment."""
    monkeypatch.chdir(tmp_path)
    (block, *_) = readme_blocks("console")
    for command, lines in shown(block)[1:3]:
        code, out, err = sam_edge(*shlex.split(command)[1:])
        assert code == 0, err
        held(lines, out + err)


@pytest.mark.slow
def test_the_readme_runs_in_a_new_environment(tmp_path: Path) -> None:
    """All that README shows of a device, pasted in order; of the workshop where it is installed."""
    python = tmp_path / "device" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "device"], check=True)
    source = copied(tmp_path / "source")
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{source}[cpu]"], check=True, env=elsewhere())
    device, workshop = readme_blocks("console")
    paste(device, python, tmp_path, elsewhere())
    for block in readme_blocks("python"):
        subprocess.run(
            [python, "-c", f"{block}\nassert masks.shape == (3, 400, 600)"], cwd=tmp_path, check=True, env=elsewhere()
        )
    if find_spec("torch") is None:
        return
    from PIL import Image

    (tmp_path / "photos").mkdir()
    with Image.open(tmp_path / "photo.jpg") as photo:
        for number in range(4):
            photo.rotate(90 * (number % 2), expand=True).save(tmp_path / "photos" / f"{number}.jpg")
    paste(workshop, Path(sys.executable), tmp_path, dict(os.environ))
    assert list((tmp_path / "cups").glob("masks.json"))


def paste(block: str, python: Path, folder: Path, environment: dict[str, str]) -> None:
    for command, lines in shown(block):
        arguments = [python, "-m", "sam_edge", *shlex.split(command)[1:]]
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        held(lines, done.stdout + done.stderr)


def test_the_site_builds_without_a_warning(generated: Path, build: ModuleType, tmp_path: Path) -> None:
    if find_spec("zensical") is None or find_spec("mkdocstrings") is None:
        pytest.skip("the extra `docs` is not installed")
    site = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs", site / "docs", ignore=shutil.ignore_patterns("generated", "__pycache__"))
    shutil.copytree(generated, site / "docs" / "generated")
    (site / "zensical.toml").write_text(
        (ROOT / "zensical.toml").read_text(encoding="utf-8").replace('paths = ["."]', f"paths = [{str(ROOT)!r}]")
    )
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    python = (site / "site" / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert "calibration_images" in python
