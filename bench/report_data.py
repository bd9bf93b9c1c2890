"""What a report is made of: steps with their numbers, pictures, and how they came about."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """One model of a lineage and what was measured of it; what was not measured is None."""

    name: str
    """Unique in the report."""
    parent: str | None
    """Name of the step whose model this one was made from; None where the lineage starts."""
    kind: str
    """checkpoint, compress, quantize, onnx fp32, onnx int8, engine, ..."""
    runtime: str | None = None
    """What ran it when it was measured."""
    parameters: int | None = None
    """Numbers in the model."""
    encoder_macs: int | None = None
    """Multiply-accumulates of the encoder's layers for one picture."""
    encoder_macs_with_attention: int | None = None
    """The same with attention's two matrix products."""
    file_bytes: int | None = None
    """Size on disk."""
    miou_point: float | None = None
    """Mean IoU by one point, of the most confident of three masks, 0 to 1."""
    miou_box: float | None = None
    """Mean IoU by a box, 0 to 1."""
    latency_ms: float | None = None
    """Median time to encode one picture."""
    decode_ms: float | None = None
    """Median time to decode one point."""
    end_to_end_ms: float | None = None
    """Median time from a picture to one mask at its size."""
    peak_bytes: int | None = None
    """Peak resident memory of a fresh process that uses the model."""
    seconds: float | None = None
    """What the step itself took."""
    note: str | None = None
    """Anything that a reader of its numbers should know."""

    def number(self, metric: str) -> float | None:
        """The value of a field that holds a number; None where not measured, NaN or infinite."""
        value = getattr(self, metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Picture:
    """A picture to look at: masks of one image, before and after."""

    title: str
    """Its heading."""
    png_path: Path
    """A PNG file; it is copied into the report."""
    caption: str = ""
    """What there is to see."""


@dataclass(frozen=True)
class LayerTime:
    """A kind of layer of the last exported encoder."""

    name: str
    """Its operator, and how many there are."""
    ms: float
    """What they take together."""
    limit_ms: float
    """What they would take at the machine's rates of multiplying and copying; 0 of what does neither."""


@dataclass(frozen=True)
class LayerCost:
    """A quantized layer: what its rounding costs, and what it takes."""

    name: str
    """As in the checkpoint's config."""
    nats: float
    """What its rounding alone adds to the task loss, per picture and to second order (TinySAM, eq. 9)."""
    ms: float | None
    """What its product takes in the last exported encoder; None of the decoder's, and of attention's products."""


@dataclass(frozen=True)
class Report:
    """Everything that `write_report` writes."""

    title: str
    """The page's heading."""
    command: str
    """The command that made it, to be run again."""
    recipe: str
    """The recipe's text."""
    hardware: dict[str, Any]
    """What `hardware.hardware()` told."""
    steps: tuple[StepReport, ...]
    """In the order in which they were taken; the last one is what the run was for."""
    pictures: tuple[Picture, ...] = ()
    """Pictures to look at."""
    notes: tuple[str, ...] = field(default=())
    """Sentences on the whole run: data, protocol, limits."""
    layers: tuple[LayerTime, ...] = ()
    """Where the time of the last exported encoder goes, longest first."""
    rounding: tuple[LayerCost, ...] = ()
    """The layers of the quantized model, the most sensitive first."""

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names):
            raise ValueError(f"a report's steps need different names, got {names}.")
        for step in self.steps:
            if step.parent is not None and step.parent not in names:
                raise ValueError(f"step {step.name}: parent must be one of {names} or None, got {step.parent}.")

    def step(self, name: str) -> StepReport:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)

    def parent_of(self, step: StepReport) -> StepReport | None:
        """The step that `step`'s model was made from."""
        return None if step.parent is None else self.step(step.parent)
