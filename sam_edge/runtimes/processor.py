"""What this machine's processor multiplies fast, by the names of its instructions."""

import platform
import re
import subprocess
from functools import cache
from pathlib import Path

FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimd": "NEON",
    "asimddp": "dot products",
    "i8mm": "int8 matrices",
    "asimdhp": "fp16",
    "bf16": "bf16",
    "sve": "SVE",
}
"""Flags of Linux's /proc/cpuinfo, and what people call them."""
APPLE = {"FEAT_DotProd": "dot products", "FEAT_I8MM": "int8 matrices", "FEAT_FP16": "fp16", "FEAT_BF16": "bf16"}
"""What macOS answers to `sysctl hw.optional.arm.NAME`."""


@cache
def features() -> tuple[str, ...]:
    """Of the names above, those that the processor has; none where the system does not tell."""
    if platform.system() == "Linux":
        try:
            text = Path("/proc/cpuinfo").read_text()
        except OSError:
            return ()
        flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)).split())
        return tuple(dict.fromkeys(name for flag, name in FEATURES.items() if flag in flags))
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ("NEON", *(name for flag, name in APPLE.items() if _sysctl(f"hw.optional.arm.{flag}") == "1"))
    return ()


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
