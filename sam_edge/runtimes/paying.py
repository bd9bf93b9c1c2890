"""Where integers pay: what was measured, by runtime and family of processors (`python -m sam_edge.studies.layers`)."""

import json
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Literal

from sam_edge.runtimes.processor import features

Kind = Literal["linear", "convolution", "pointwise", "depthwise"]
TABLE = Path(__file__).with_name("paying.json")
FAMILIES = {"amx": "AMX int8", "vnni": "VNNI", "avx2": "AVX2", "i8mm": "int8 matrices", "dot": "dot products"}
"""Families of processors by what multiplies integers fastest in them, the fastest first, and how it is told."""
UNKNOWN = "other"
"""A processor of none of them."""


@dataclass(frozen=True)
class Row:
    """One measured layer."""

    kind: Kind
    inputs: int
    """Channels of the input."""
    outputs: int
    ratio: float
    """How many times as fast as in float it is in integers."""


Table = dict[str, dict[str, list[Row]]]
"""Runtime -> family -> what was measured."""


def family() -> str:
    """The family of this machine's processor."""
    here = features()
    return next((name for name, feature in FAMILIES.items() if feature in here), UNKNOWN)


def read_table(file: Path = TABLE) -> Table:
    """What was measured."""
    read = json.loads(file.read_text(encoding="utf-8"))
    return {
        runtime: {name: [Row(**row) for row in rows] for name, rows in families.items()}
        for runtime, families in read.items()
    }


def pays(rows: list[Row], kind: Kind, inputs: int, outputs: int) -> bool:
    """Whether integers are faster than float in the measured layer of this kind that is nearest in its channels.

    Where nothing like it was measured, integers are taken to pay.
    """
    alike = [row for row in rows if row.kind == kind]
    if not alike:
        return True
    nearest = min(alike, key=lambda row: log(row.inputs / inputs) ** 2 + log(row.outputs / outputs) ** 2)
    return nearest.ratio >= 1
