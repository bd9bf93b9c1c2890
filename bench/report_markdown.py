"""A report as Markdown: what is read in a terminal, a pull request or a diff."""

import re
from collections.abc import Sequence

from sam_edge.bench import units
from sam_edge.bench.hardware import lines as hardware_lines
from sam_edge.bench.plots import accuracy_speed_caption
from sam_edge.bench.report_changes import (
    ACCURACY_AND_SPEED,
    SIZE_AND_COST,
    Metric,
    cell,
    headline,
)
from sam_edge.bench.report_data import LayerCost, LayerTime, Report
from sam_edge.bench.units import DASH
from sam_edge.bench.verdict import did_not_pay, gained

ROUNDING = "What each layer's rounding costs"
ROUNDING_HEADS = ("Layer", "Nats per picture", "Of all", "Time")
ROUNDING_LEGEND = (
    "Nats: what the rounding of this layer alone adds to the task loss, to second order. Time: of its product in the "
    "last exported encoder."
)
WORST = 20
"""Layers shown, those that cost most."""
NOTHING_FAILED = "Nothing, as far as it was measured: no step is slower, less accurate or larger than its parent."


def markdown(report: Report, plot_file: str | None, picture_files: Sequence[str]) -> str:
    """The text of `report.md`; pictures are named by files beside it."""
    parts = [f"# {_line(report.title)}", _fenced(report.command)]
    if cards := headline(report):
        ends = f"From `{report.steps[0].name}` to `{report.steps[-1].name}`:"
        parts += [ends, "\n".join(f"- {label}: {before} -> {after}" for label, before, after in cards)]
    parts.append(gained(report) or "")
    parts += ["## What did not pay", _bullets(did_not_pay(report)) or NOTHING_FAILED]
    parts += ["## Accuracy and speed", _table(report, ACCURACY_AND_SPEED)]
    if plot_file is not None:
        parts.append(f"![Accuracy against speed]({plot_file})")
    parts.append(accuracy_speed_caption(report.steps))
    parts += ["## Size and cost", _table(report, SIZE_AND_COST)]
    parts.append("In brackets: the change against the step it was made from. A dash: not measured.")
    if remarks := [f"`{step.name}`: {_line(step.note)}" for step in report.steps if step.note]:
        parts.append(_bullets(remarks))
    if report.layers:
        rows = [["Operator", "Time", "Limit", "Time / limit"], [":--", "--:", "--:", "--:"]]
        rows += [list(layer_cells(layer)) for layer in report.layers]
        parts += ["## Where the last encoder's time goes", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    if report.rounding:
        rows = [[*ROUNDING_HEADS], [":--", "--:", "--:", "--:"]]
        rows += [list(rounding_cells(report, layer)) for layer in report.rounding[:WORST]]
        parts += [f"## {ROUNDING}", "\n".join(f"| {' | '.join(row)} |" for row in rows), ROUNDING_LEGEND]
        if (left := len(report.rounding) - WORST) > 0:
            parts.append(f"The other {left} are in `report.html` and `report.json`.")
    if report.pictures:
        parts.append("## Pictures")
    for picture, file in zip(report.pictures, picture_files, strict=True):
        parts += [f"### {_line(picture.title)}", f"![{_line(picture.title)}]({file})", _line(picture.caption)]
    if report.notes:
        parts += ["## Notes", _bullets([_line(note) for note in report.notes])]
    parts += [
        "## Measured on",
        _bullets([f"{name}: {value}" for name, value in hardware_lines(report.hardware)]),
    ]
    parts += ["## Recipe", _fenced(report.recipe)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(report: Report, metrics: Sequence[Metric]) -> str:
    rows = [["Step", "From", "Kind", "Runtime", *(metric.label for metric in metrics)]]
    rows.append([":--"] * 4 + ["--:"] * len(metrics))
    for step in report.steps:
        texts = [step.name, step.parent or DASH, step.kind, step.runtime or DASH]
        cells = [str(cell(metric, step, report.parent_of(step))) for metric in metrics]
        rows.append([_line(text).replace("|", "\\|") for text in texts] + cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def layer_cells(layer: LayerTime) -> tuple[str, str, str, str]:
    """A row: the operator, its time, what the machine allows, and the ratio."""
    ratio = units.times(layer.ms / layer.limit_ms) if layer.limit_ms else units.DASH
    return layer.name, units.milliseconds(layer.ms), units.milliseconds(layer.limit_ms), ratio


def rounding_cells(report: Report, layer: LayerCost) -> tuple[str, str, str, str]:
    """A row: the layer, what its rounding costs, its share of all layers' cost, and its time."""
    whole = sum(each.nats for each in report.rounding)
    share = f"{layer.nats / whole:.1%}" if whole else DASH
    return layer.name, f"{layer.nats:.3g}", share, units.milliseconds(layer.ms)


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _line(text: str) -> str:
    return " ".join(text.split())


def _fenced(text: str) -> str:
    # a fence longer than any within
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text.strip()}\n{fence}"
