"""The device half on ARM64 without an ARM machine: Debian's Python and wheels in folders, run by QEMU.

Nothing is installed: apt-get keeps its lists of ARM64's packages in a folder of its own, and all that is fetched is
unpacked into sam-edge's cache, where later runs find it.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_edge.files import atomic_folder, cache_folder

PROJECT = Path(__file__).parents[2]
QEMU = "qemu-aarch64-static"
CPU = "cortex-a76"
"""A Raspberry Pi 5's: NEON and dot products of int8."""
PYTHON = "python3.11"
DEBIAN = (
    "libc6",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libstdc++6",
    "libgcc-s1",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
)
"""Python and what it and the wheels are linked to."""
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
PINNED = ("onnxruntime==1.23.2",)
"""Later ones crash in Debian 12's QEMU (seen with 1.32.0)."""


class UnavailableError(Exception):
    """Why nothing can be emulated here."""


@dataclass(frozen=True)
class Emulated:
    """A Python for ARM64 that has the device half."""

    qemu: Path
    root: Path
    """What the emulated process takes for `/`, as far as it holds it."""
    modules: tuple[Path, ...]

    def run(self, *arguments: str | Path, timeout_s: float) -> str:
        """Stdout of `python ARGUMENTS`, on one thread.

        Raises:
            AssertionError: it failed. subprocess.TimeoutExpired: it took too long.
        """
        own = {"PYTHONPATH": os.pathsep.join(map(str, self.modules)), "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        # -S: packages of this machine's own Python are at the paths where it looks; -P: so may the checkout be
        python = [self.qemu, "-L", self.root, "-cpu", CPU, self.root / "usr" / "bin" / PYTHON, "-SP"]
        done = subprocess.run(
            [*python, *arguments], env=kept | own, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout


def emulated(temporary: Path) -> Emulated:
    """The device half as wheels install it; the project's own wheel is built in an empty folder.

    Raises:
        UnavailableError: this machine cannot run it, or cannot fetch it. AssertionError: a wheel is missing or broken.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UnavailableError(f"ARM64 is emulated on x86-64 Linux, not on {platform.system()} {platform.machine()}")
    cache = cache_folder() / "arm64"
    root = _debian(cache, "root", tuple(f"{name}:arm64" for name in DEBIAN))
    found = shutil.which(QEMU)
    qemu = (
        Path(found) if found else _debian(cache, "qemu", ("qemu-user-static",), f"./usr/bin/{QEMU}") / "usr/bin" / QEMU
    )
    described = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    project = described["project"]
    device = [*project["dependencies"], *project["optional-dependencies"]["cpu"], *PINNED]
    wheels = _wheels(cache, described["build-system"]["requires"], device)
    own = _own_wheel(described, wheels / "tools", temporary)
    return Emulated(qemu, root, (own, wheels / "device"))


def _debian(cache: Path, name: str, packages: Sequence[str], *members: str) -> Path:
    """A folder of unpacked packages; of all their files, or of some.

    Raises:
        UnavailableError: no Debian, no network, or another release, which has other packages.
    """
    target = cache / f"{name}-{_digest(packages)}"
    if target.is_dir():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError("Python for ARM64 and QEMU come from Debian's packages, and there is no apt-get here")
    with tempfile.TemporaryDirectory() as folder, atomic_folder(target) as work:
        downloads = Path(folder)
        for part in ("state/lists/partial", "cache/archives/partial", "packages"):
            (downloads / part).mkdir(parents=True)
        # in folders of its own: this machine's architectures and lists stay as they are, and root is not needed
        options = {"Dir::State": downloads / "state", "Dir::Cache": downloads / "cache", "APT::Sandbox::User": ""}
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        apt += [f"-oAPT::Architectures::={name}" for name in ("amd64", "arm64")]
        apt.append("-oDir::State::status=/var/lib/dpkg/status")
        _apt([*apt, "update"], downloads)
        _apt([*apt, "download", *packages], downloads / "packages")
        for package in (downloads / "packages").iterdir():
            tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x", "-C", work, *members], input=tar, check=True)
    return target


def _apt(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError("apt-get waited ten minutes for packages: the network is too slow") from error
    if done.returncode:
        wrong = next((line for line in done.stderr.splitlines() if line.startswith("E:")), "it does not say why")
        raise UnavailableError(f"apt-get gives none of Debian 12's packages for ARM64 (a network is needed): {wrong}")


def _wheels(cache: Path, tools: Sequence[str], device: Sequence[str]) -> Path:
    """A folder of unpacked wheels: `tools`, which build the project's own, and what the `device` needs.

    Raises:
        UnavailableError: pip fetches nothing here. AssertionError: it fetches tools, but not what the device needs.
    """
    target = cache / f"wheels-{_digest([*tools, '', *device])}"
    if target.is_dir():
        return target
    platforms = [part for name in WHEELS for part in ("--platform", name)]
    with atomic_folder(target) as work:
        try:
            _fetch(tools, work / "tools")
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"pip fetches nothing here: {error}") from error
        # there is a network, then: a wheel that does not come is missing, which is no reason to skip
        _fetch(device, work / "device", *platforms, "--python-version", "311")
    return target


def _fetch(requirements: Sequence[str], target: Path, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _pip("download", "--only-binary=:all:", *options, "--dest", folder, *requirements)
        _unpack(Path(folder), target)


def _own_wheel(described: dict, tools: Path, temporary: Path) -> Path:
    """The project's wheel, unpacked; built from a copy, for setuptools writes beside what it builds."""
    source, built, unpacked = (temporary / name for name in ("source", "built", "unpacked"))
    source.mkdir()
    project = described["project"]
    for file in ("pyproject.toml", project["readme"], *project["license-files"]):
        shutil.copy(PROJECT / file, source)
    for folder in described["tool"]["setuptools"]["package-dir"].values():
        shutil.copytree(PROJECT / folder, source / folder, ignore=_left_out)
    environment = os.environ | {"PYTHONPATH": str(tools)}
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source, environment=environment)
    _unpack(built, unpacked)
    return unpacked


def _left_out(folder: str, names: list[str]) -> list[str]:
    """Links, which only mypy needs, and bytecode."""
    return [name for name in names if name == "__pycache__" or Path(folder, name).is_symlink()]


def _unpack(wheels: Path, target: Path) -> None:
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


def _pip(*arguments: str | Path, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr.strip()[-1000:]


def _digest(parts: Sequence[str]) -> str:
    """What tells one content of the cache from another."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
