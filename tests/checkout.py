"""A copy of the checkout, to install from: what was built in it, and its links for mypy, are left out."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINKS = ("export", "kernels", "bench")
LEFT_OUT = (".*", "demo", "runs", "site", "build", "dist", "*.egg-info", "__pycache__", "*.so", "node_modules")


def copied(folder: Path) -> Path:
    """Copy the checkout to `folder`, which is returned."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for link in LINKS:
        (folder / "sam_edge" / link).unlink(missing_ok=True)
    return folder


def elsewhere() -> dict[str, str]:
    """This process's environment for an installation of its own: nothing is imported from here."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
