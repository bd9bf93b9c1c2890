"""What each step changed against its parent: the cells of every table of the report."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sam_edge.bench import units
from sam_edge.bench.report_data import Report, StepReport

NOISE = 1.05
"""A step slower than its parent by more than this factor did not pay; less is within a machine's noise."""
MIOU_DROP = 0.02
"""A step whose mean IoU falls by more than this against its parent did not pay."""

Tone = Literal["good", "bad", ""]


@dataclass(frozen=True)
class Metric:
    """A number of a step, and how it is shown and compared."""

    name: str
    """Field of StepReport."""
    label: str
    """Heading of its column."""
    show: Callable[[float | None], str]
    """The number as text."""
    change: Literal["ratio", "speed", "difference", "none"]
    """Compared as `0.31x`, as `1.8x faster`, as `-0.012`, or not at all."""


@dataclass(frozen=True)
class Cell:
    """A number in a table."""

    text: str
    """The value, or a dash."""
    change: str = ""
    """Against the parent; empty where there is nothing to compare with."""
    tone: Tone = ""
    """Whether the change is for the better; empty within noise."""

    def __str__(self) -> str:
        return f"{self.text} ({self.change})" if self.change else self.text


ACCURACY_AND_SPEED = (
    Metric("miou_point", "mIoU, point", units.score, "difference"),
    Metric("miou_box", "mIoU, box", units.score, "difference"),
    Metric("latency_ms", "Encode", units.milliseconds, "speed"),
    Metric("decode_ms", "Decode a point", units.milliseconds, "speed"),
    Metric("end_to_end_ms", "End to end", units.milliseconds, "speed"),
)
SIZE_AND_COST = (
    Metric("parameters", "Parameters", units.count, "ratio"),
    Metric("encoder_macs", "Encoder MACs", units.count, "ratio"),
    Metric("encoder_macs_with_attention", "MACs with attention", units.count, "ratio"),
    Metric("file_bytes", "File", units.size, "ratio"),
    Metric("peak_bytes", "Peak memory", units.size, "ratio"),
    Metric("seconds", "Step took", units.seconds, "none"),
)
METRICS = ACCURACY_AND_SPEED + SIZE_AND_COST


def cell(metric: Metric, step: StepReport, before: StepReport | None) -> Cell:
    """A step's number and its change against `before`."""
    value = step.number(metric.name)
    text = metric.show(value)
    old = None if before is None else before.number(metric.name)
    if value is None or old is None or metric.change == "none":
        return Cell(text)
    if metric.change == "difference":
        return Cell(text, *_difference(value - old))
    if old <= 0 or value <= 0:
        return Cell(text)
    return Cell(text, *(_speed(value / old) if metric.change == "speed" else _ratio(value / old)))


def changes(report: Report, step: StepReport) -> dict[str, float]:
    """By metric, the ratio to the parent (sizes, times) or the difference (mIoU), unrounded."""
    parent = report.parent_of(step)
    found: dict[str, float] = {}
    for metric in METRICS if parent is not None else ():
        value, old = step.number(metric.name), parent.number(metric.name) if parent else None
        if value is None or old is None or metric.change == "none":
            continue
        if metric.change == "difference":
            found[metric.name] = value - old
        elif old > 0:
            found[metric.name] = value / old
    return found


def headline(report: Report) -> list[tuple[str, str, Cell]]:
    """Label, the first step's value and the last step's cell, of each main metric that both have."""
    if len(report.steps) < 2:
        return []
    first, last = report.steps[0], report.steps[-1]
    names = ("file_bytes", "miou_point", "miou_box", "latency_ms", "end_to_end_ms", "peak_bytes")
    return [
        (metric.label, metric.show(first.number(metric.name)), cell(metric, last, first))
        for name in names
        for metric in METRICS
        if metric.name == name and first.number(name) is not None and last.number(name) is not None
    ]


def as_dict(report: Report) -> dict[str, Any]:
    """The report as plain values for JSON, with each step's changes; no picture and no path."""
    text_fields = ("name", "parent", "kind", "runtime", "note")
    return {
        "title": report.title,
        "command": report.command,
        "hardware": report.hardware,
        "steps": [
            {name: getattr(step, name) for name in text_fields}
            | {metric.name: step.number(metric.name) for metric in METRICS}
            | {"change": changes(report, step)}
            for step in report.steps
        ],
        "notes": list(report.notes),
        "layers": [asdict(layer) for layer in report.layers],
        "rounding": [asdict(layer) for layer in report.rounding],
        "pictures": [{"title": picture.title, "caption": picture.caption} for picture in report.pictures],
        "recipe": report.recipe,
    }


def _difference(difference: float) -> tuple[str, Tone]:
    if abs(difference) < 0.0005:
        return "same", ""
    bad = difference < -MIOU_DROP - 1e-9
    return f"{difference:+.3f}", "bad" if bad else "good" if difference > 0 else ""


def _ratio(ratio: float) -> tuple[str, Tone]:
    if abs(ratio - 1) < 0.005:
        return "same", ""
    return units.times(ratio), "good" if ratio < 1 / NOISE else "bad" if ratio > NOISE else ""


def _speed(ratio: float) -> tuple[str, Tone]:
    if 1 / 1.005 < ratio < 1.005:
        return "same", ""
    if ratio < 1:
        return f"{units.times(1 / ratio)} faster", "good" if ratio < 1 / NOISE else ""
    return f"{units.times(ratio)} slower", "bad" if ratio > NOISE else ""
