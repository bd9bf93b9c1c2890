"""A report as one HTML file: pictures inside it, nothing fetched, light and dark."""

import base64
import re
from collections.abc import Sequence
from html import escape

from sam_edge.bench.hardware import lines as hardware_lines
from sam_edge.bench.plots import accuracy_speed_caption
from sam_edge.bench.report_changes import (
    ACCURACY_AND_SPEED,
    SIZE_AND_COST,
    Cell,
    Metric,
    cell,
    headline,
)
from sam_edge.bench.report_data import Report, StepReport
from sam_edge.bench.report_markdown import (
    NOTHING_FAILED,
    ROUNDING,
    ROUNDING_HEADS,
    ROUNDING_LEGEND,
    layer_cells,
    rounding_cells,
)
from sam_edge.bench.report_style import CSS, SORTING
from sam_edge.bench.verdict import did_not_pay, gained


def html(report: Report, plots: tuple[bytes, bytes] | None, pictures: Sequence[bytes]) -> str:
    """The text of `report.html`; `plots` are the light and the dark PNG."""
    sections = [
        _header(report),
        _headline(report),
        _list([sentence]) if (sentence := gained(report)) else "",
        _verdict(did_not_pay(report)),
        _section("Accuracy and speed", _table(report, ACCURACY_AND_SPEED) + _plot(report, plots)),
        _section("Size and cost", _table(report, SIZE_AND_COST) + _LEGEND + _remarks(report)),
        _layers(report),
        _rounding(report),
        _pictures(report, pictures),
        _section("Notes", _list(report.notes)) if report.notes else "",
        _section("Measured on", _definitions(hardware_lines(report.hardware))),
        _section("Recipe", f"<pre>{escape(report.recipe.strip())}</pre>") if report.recipe.strip() else "",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}</main>\n<script>{SORTING}</script>\n</body>\n</html>\n"
    )


_LEGEND = (
    '<p class="quiet">Beside each number: the change against the step it was made from. '
    "A dash: not measured. A MB is a million bytes.</p>\n"
)


def _header(report: Report) -> str:
    command = f"<pre>{escape(report.command.strip())}</pre>\n" if report.command.strip() else ""
    return f"<header>\n<h1>{escape(report.title)}</h1>\n{command}</header>\n"


def _headline(report: Report) -> str:
    cards = headline(report)
    if not cards:
        return ""
    ends = f"From <code>{escape(report.steps[0].name)}</code> to <code>{escape(report.steps[-1].name)}</code>"
    return f'<p class="ends">{ends}</p>\n<div class="cards">{"".join(map(_card, cards))}</div>\n'


def _card(card: tuple[str, str, Cell]) -> str:
    label, before, after = card
    return (
        f'<div class="card"><div class="label">{escape(label)}</div>'
        f'<div class="now">{escape(after.text)}</div>'
        f'<div class="was">from {escape(before)} {_change(after)}</div></div>'
    )


def _verdict(failures: list[str]) -> str:
    body = _list(failures) if failures else f"<p>{NOTHING_FAILED}</p>\n"
    tone = "bad" if failures else "good"
    return f'<section class="verdict {tone}">\n<h2>What did not pay</h2>\n{body}</section>\n'


def _table(report: Report, metrics: Sequence[Metric]) -> str:
    heads = "".join(f'<th scope="col">{escape(metric.label)}</th>' for metric in metrics)
    rows = "".join(_row(report, step, metrics) for step in report.steps)
    # focusable, so that the keyboard can scroll it too
    return (
        f'<div class="scroll" tabindex="0"><table>\n'
        f'<thead><tr><th scope="col">Step</th>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>\n"
    )


def _row(report: Report, step: StepReport, metrics: Sequence[Metric]) -> str:
    origin = " · ".join(part for part in (step.kind, step.runtime) if part)
    parent = f" · from {step.parent}" if step.parent else ""
    name = f'{escape(step.name)}<span class="origin">{escape(origin + parent)}</span>'
    cells = []
    for metric in metrics:
        found = cell(metric, step, report.parent_of(step))
        cells.append(f"<td{_value(step.number(metric.name))}>{escape(found.text)}{_change(found)}</td>")
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>\n'


def _change(found: Cell) -> str:
    return f' <span class="change {found.tone}">({escape(found.change)})</span>' if found.change else ""


def _plot(report: Report, plots: tuple[bytes, bytes] | None) -> str:
    caption = f"<figcaption>{_prose(accuracy_speed_caption(report.steps))}</figcaption>"
    if plots is None:
        return f"<figure>{caption}</figure>\n"
    light, dark = (_data_url(plot) for plot in plots)
    return (
        f'<figure class="plot"><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="Mean IoU by box against encode latency" src="{light}"></picture>{caption}</figure>\n'
    )


def _remarks(report: Report) -> str:
    return _list([f"`{step.name}`: {step.note}" for step in report.steps if step.note])


def _layers(report: Report) -> str:
    if not report.layers:
        return ""
    rows = [
        (layer_cells(layer), (layer.ms, layer.limit_ms, layer.ms / layer.limit_ms if layer.limit_ms else None))
        for layer in report.layers
    ]
    legend = "Limit: what the machine takes for the multiplications or the bytes, as measured."
    heads = ("Operator", "Time", "Limit", "Time / limit")
    return _section("Where the last encoder's time goes", _sorted_table(heads, rows, legend))


def _rounding(report: Report) -> str:
    if not report.rounding:
        return ""
    rows = [(rounding_cells(report, layer), (layer.nats, layer.nats, layer.ms)) for layer in report.rounding]
    return _section(ROUNDING, _sorted_table(ROUNDING_HEADS, rows, ROUNDING_LEGEND, "long"))


def _sorted_table(
    heads: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[float | None]]], legend: str, kind: str = ""
) -> str:
    """A table whose rows have a name, further cells, and what each of these is sorted by."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for (name, *texts), values in rows:
        cells = "".join(f"<td{_value(v)}>{escape(text)}</td>" for text, v in zip(texts, values, strict=True))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>\n')
    table = f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>"
    box = f'<div class="{f"scroll {kind}".strip()}" tabindex="0"><table>\n{table}\n</table></div>\n'
    return f'{box}<p class="quiet">{escape(legend)}</p>\n'


def _value(value: float | None) -> str:
    """What a table sorts by: the number itself, not its text."""
    return "" if value is None else f' data-value="{value!r}"'


def _pictures(report: Report, pictures: Sequence[bytes]) -> str:
    figures = [
        f'<figure><h3>{escape(picture.title)}</h3><img alt="{escape(picture.title)}" src="{_data_url(png)}">'
        f"<figcaption>{_prose(picture.caption)}</figcaption></figure>\n"
        for picture, png in zip(report.pictures, pictures, strict=True)
    ]
    return _section("Pictures", f'<div class="pictures">\n{"".join(figures)}</div>\n') if figures else ""


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n"


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs)
    return f"<dl>{rows}</dl>\n"


def _list(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{_prose(text)}</li>\n" for text in texts)
    return f"<ul>\n{items}</ul>\n" if items else ""


def _prose(text: str) -> str:
    """Escaped text, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
