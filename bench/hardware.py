"""What a number was measured on."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sam_edge.kernels.library import level
from sam_edge.runtimes.cuda import cuda_devices
from sam_edge.runtimes.threads import cpu_threads

PACKAGES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt",),
}
"""Libraries that run models, and the names they are installed under."""


def hardware() -> dict[str, Any]:
    """The machine and the versions on it, as plain values for JSON.

    `cpu`, `cores` (logical, that this process may use), `threads` (that runtimes take), `ram_bytes`, `gpu` (name
    or None), `kernels` (the instruction set of sam-edge's own, or None), `os`, `python`, and `versions` of whichever of
    `PACKAGES` is installed. What the system does not tell is None.
    """
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": cpu_threads(),
        "ram_bytes": _ram_bytes(),
        "gpu": next((device.name for device in cuda_devices()), None),
        "kernels": level() or None,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def slug(hardware: dict[str, Any]) -> str:
    """A file name, without its ending, for results of this machine: processor, threads, versions.

    `intel-xeon-platinum-8370c-2t_torch-2.9.1_onnxruntime-1.23.0`; a GPU, if there is one, comes first.
    """
    processor = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", str(hardware.get("cpu") or "unknown").lower())
    parts = [f"{processor} {hardware['threads']}t" if hardware.get("threads") else processor]
    if hardware.get("gpu"):
        parts.insert(0, str(hardware["gpu"]))
    # the local part of a version (+cu130) names a build, not a version
    parts += [f"{name} {str(found).split('+')[0]}" for name, found in hardware.get("versions", {}).items()]
    # file systems take names of up to 255 bytes
    return "_".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.") for part in parts)[:200]


def _version(name: str) -> str | None:
    # read from the installed metadata: importing four runtimes to ask their version would take seconds
    for distribution in PACKAGES[name]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str | None:
    if platform.system() == "Linux":
        try:
            text = Path("/proc/cpuinfo").read_text()
        except OSError:
            text = ""
        # Arm boards have no "model name"; the older ones name the board under "Hardware" or "Model"
        for key in ("model name", "Hardware", "Model"):
            if found := re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE):
                return found[1].strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    return platform.processor() or platform.machine() or None


def _ram_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def lines(hardware: dict[str, Any]) -> list[tuple[str, str]]:
    """The machine for people: a name and a text per line, what is not known left out."""
    words = {"cpu": "CPU", "ram_bytes": "Memory", "gpu": "GPU", "os": "System", "python": "Python"}
    found = []
    for key, value in hardware.items():
        if key == "versions":
            found += [(str(name), str(number)) for name, number in value.items()]
        elif value is not None:
            text = f"{value / 2**30:.1f} GiB" if key == "ram_bytes" else str(value)
            found.append((words.get(key, key.replace("_", " ").capitalize()), text))
    return found
