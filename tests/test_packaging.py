"""pyproject's list of packages against the folders, and what an installation must hold."""

import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from sam_edge.halves import EXTRAS
from tests.checkout import copied, elsewhere

ROOT = Path(__file__).parents[1]
MAPPED = ("export", "kernels", "bench")
MOST_WHEEL_BYTES = 30_000_000


@pytest.fixture(scope="module")
def setuptools() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_of_code_is_a_listed_package(setuptools: dict) -> None:
    tops = {"sam_edge": ROOT / "sam_edge", **{f"sam_edge.{name}": ROOT / name for name in MAPPED}}
    found = set()
    for package, top in tops.items():
        for init in top.rglob("__init__.py"):
            if any(parent.is_symlink() for parent in init.parents):
                continue
            inner = init.parent.relative_to(top).parts
            found.add(".".join((package, *inner)))
    assert found == set(setuptools["packages"])


def test_mapped_packages_are_the_folders_beside_sam_edge(setuptools: dict) -> None:
    assert setuptools["package-dir"] == {"sam_edge": "sam_edge", **{f"sam_edge.{name}": name for name in MAPPED}}


def test_mapped_packages_import_from_the_checkout() -> None:
    import sam_edge.bench
    import sam_edge.export
    import sam_edge.kernels

    for module in (sam_edge.bench, sam_edge.export, sam_edge.kernels):
        assert Path(module.__path__[0]).resolve() == ROOT / module.__name__.split(".")[1]


def test_packaged_data_exists(setuptools: dict) -> None:
    for package, patterns in setuptools["package-data"].items():
        folder = ROOT / setuptools["package-dir"].get(package, package.replace(".", "/"))
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


def test_a_device_needs_no_torch(setuptools: dict) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"] + project["optional-dependencies"]["cpu"])
    assert not any(name in needed for name in ("torch", "opencv", "onnxscript", "matplotlib", "safetensors"))
    # one extra brings each runtime, and names them as errors do
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])


def test_a_licence_lies_beside_what_is_not_ours() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for file in project["license-files"]:
        assert (ROOT / file).is_file()
    told = (ROOT / "sam_edge" / "shipped" / "LICENCES.md").read_text()
    for folder in (ROOT / "sam_edge" / "shipped").iterdir():
        assert folder.is_file() or f"`{folder.name}`" in told
    # the page brings ONNX Runtime's web build along, whose licence asks to be
    assert "Microsoft Corporation" in (ROOT / "sam_edge" / "web" / "page" / "onnxruntime-licence.txt").read_text()


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what they are given."""
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


def test_the_container_is_slim_and_not_root() -> None:
    written = steps()
    assert [image for step, image in written if step == "FROM"] == ["python:3.13-slim AS build", "python:3.13-slim"]
    user = written.index(("USER", "sam"))
    # what runs, runs as that user, and nothing of the build but the environment is there
    assert user < written.index(("ENTRYPOINT", '["sam-edge"]'))
    assert [given for step, given in written if step == "COPY"] == [
        ". /source",
        "--from=build /opt/sam-edge /opt/sam-edge",
    ]


@pytest.mark.slow
def test_the_steps_of_the_container_make_a_device(tmp_path: Path) -> None:
    """Where there is no Docker: what the Dockerfile runs, in folders of this test's, but for what needs root."""
    source, root = copied(tmp_path / "source"), tmp_path / "opt"
    for step, given in steps():
        if step == "RUN" and not given.startswith(("apt-get", "useradd")):
            command = given.replace("/source", str(source)).replace("/opt", str(root))
            command = command.replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(command, shell=True, check=True, env=elsewhere())
    work = tmp_path / "work"
    work.mkdir()
    environment = {"PATH": f"{root}/sam-edge/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["sam-edge", "demo"], cwd=work, env=environment, check=True)
    assert (work / "sam-edge-demo" / "box.png").is_file()
    done = subprocess.run(
        ["sam-edge", "compress", "nano", "--images", "synthetic:4", "--out", "slim"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'sam-edge[workshop]'" in done.stderr


@pytest.mark.slow
def test_what_is_built_can_be_uploaded(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="`build` is not installed")
    pytest.importorskip("twine", reason="`twine` is not installed")
    source = copied(tmp_path / "source")
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source], check=True)
    files = sorted((tmp_path / "dist").iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    licences = {name.partition("dist-info/licenses/")[2] for name in ZipFile(files[0]).namelist()} - {""}
    assert licences == set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "pure"),
    [({}, shutil.which("c++") is None), ({"SAM_EDGE_NO_EXT": "1"}, True), ({"CC": "false", "CXX": "false"}, True)],
    ids=["kernels", "no kernels", "no compiler"],
)
def test_a_wheel_works_on_a_device_outside_of_the_checkout(
    environment: dict[str, str], pure: bool, tmp_path: Path
) -> None:
    source = copied(tmp_path / "source")

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=elsewhere() | environment,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl") == pure
    assert "-py3-none-" in wheel.name
    assert wheel.stat().st_size <= MOST_WHEEL_BYTES
    # what is compiled on a device is there, what was compiled already is not
    shipped = {Path(name).name for name in ZipFile(wheel).namelist() if "kernels/csrc/" in name}
    assert shipped == {file.name for file in (ROOT / "kernels" / "csrc").glob("*.cu*")}
    venv.create(tmp_path / "device", with_pip=True)
    python = tmp_path / "device" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    run(python, "-m", "sam_edge", "sample")
    run(python, "-m", "sam_edge", "segment", "nano", "photo.jpg", "--box", "140,20,470,290", "--out", "cup")
    assert (tmp_path / "cup" / "mask_000.png").is_file()
    loaded = run(python, "-c", "import sam_edge.cli, sys; print('torch' in sys.modules)")
    assert loaded.strip() == "False"
    level = run(python, "-c", "from sam_edge.kernels.library import level; print(level())")
    assert bool(level.strip()) != pure
