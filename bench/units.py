"""How numbers read: decimal units (1 MB is 10^6 bytes), three figures, a dash for what was not measured."""

import math
from typing import TypeGuard

DASH = "—"
"""Stands for a number that was not measured."""


def count(value: float | None) -> str:
    """A number of parameters or multiply-accumulates: `5.78 M`."""
    return _scaled(value, ("", " k", " M", " G", " T"))


def size(value_bytes: float | None) -> str:
    """A size in decimal units: `4.6 MB`."""
    return _scaled(value_bytes, (" B", " kB", " MB", " GB", " TB"))


def milliseconds(value_ms: float | None) -> str:
    """A latency: `0.52 ms`, `12.1 ms`, `1.35 s`."""
    if not is_number(value_ms):
        return DASH
    return f"{_figures(value_ms)} ms" if value_ms < 1000 else f"{_figures(value_ms / 1000)} s"


def seconds(value_s: float | None) -> str:
    """A duration: `1.4 s`, `12 min 5 s`, `3 h 20 min`."""
    if not is_number(value_s):
        return DASH
    if value_s < 60:
        return f"{_figures(value_s)} s"
    minutes, rest_s = divmod(round(value_s), 60)
    hours, rest_min = divmod(minutes, 60)
    return f"{hours} h {rest_min} min" if hours else f"{minutes} min {rest_s} s"


def score(value: float | None) -> str:
    """A mean IoU: `0.712`."""
    return f"{value:.3f}" if is_number(value) else DASH


def times(ratio: float) -> str:
    """A factor: `1.04x`, `1.8x`, `12x`, `0.31x`."""
    digits = 2 if ratio < 1.1 else 1 if ratio < 10 else 0
    # a factor that would read 0.00x says how small it is
    return f"{ratio:.{digits}f}x" if ratio >= 0.01 else f"{ratio:.1g}x"


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def _scaled(value: float | None, suffixes: tuple[str, ...]) -> str:
    if not is_number(value):
        return DASH
    power = 0
    # 999.6 would round to 1000
    while value >= 999.5 and power < len(suffixes) - 1:
        value, power = value / 1000, power + 1
    return f"{_figures(value) if power else format(value, '.0f')}{suffixes[power]}"


def _figures(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"
