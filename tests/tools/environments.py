"""Environments of other tools, from the package index."""

import subprocess
import sys
from pathlib import Path


def environment(name: str, packages: tuple[str, ...], alone: tuple[str, ...], cache: Path) -> Path:
    """The interpreter of a virtual environment with these packages, made once."""
    folder = cache / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        if alone:
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *alone], check=True)
        (folder / "ready").touch()
    return python
