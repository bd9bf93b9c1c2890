"""pyproject's list of packages against the folders, and what an installation must hold."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("export", "kernels", "bench")


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
        folder = ROOT.joinpath(*package.split("."))
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


@pytest.mark.parametrize("name", ["nano", "nano-t"])
def test_a_packaged_model_weighs_at_most_12_megabytes(name: str) -> None:
    assert (ROOT / "sam_edge" / "shipped" / name / "model.safetensors").stat().st_size <= 12_000_000
