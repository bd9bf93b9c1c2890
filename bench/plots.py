"""The report's plot: accuracy against speed against size, for all steps that have both of the first two."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import pi, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullFormatter
from matplotlib.transforms import Bbox

from sam_edge.bench import units
from sam_edge.bench.report_data import StepReport

LARGEST_AREA = 1400.0
SMALLEST_AREA = 40.0
"""Markers' areas in square points: the largest file's, and what a marker needs to be seen."""


@dataclass(frozen=True)
class _Theme:
    ground: str
    ink: str
    faint: str
    grid: str
    runtimes: tuple[str, ...]


_Link = tuple[StepReport, StepReport]

_LIGHT = _Theme("#ffffff", "#1c2024", "#70777f", "#e6e8eb", ("#2563b8", "#c2570c", "#15803d", "#9333a8", "#a16207"))
_DARK = _Theme("#1a1d21", "#e8eaed", "#9aa1a9", "#2e3338", ("#6ea8fe", "#fb923c", "#4ade80", "#d58bf0", "#facc15"))


def plottable(steps: Sequence[StepReport]) -> list[StepReport]:
    """The steps that have a mean IoU by box and an encode latency."""
    return [s for s in steps if s.number("miou_box") is not None and (s.number("latency_ms") or 0) > 0]


def accuracy_speed_caption(steps: Sequence[StepReport]) -> str:
    """What the plot shows, and which steps it leaves out."""
    shown = plottable(steps)
    caption = "Mean IoU by box against the median time to encode a picture; up and to the left is better."
    if any(step.number("file_bytes") for step in shown):
        caption += " A marker's area is the model's size on disk; the smallest are drawn larger to be seen."
    if unsized := [step for step in shown if not step.number("file_bytes")]:
        caption += f" Hollow, for want of a size: {_names(unsized)}."
    if missing := [step for step in steps if step not in shown]:
        caption += f" Left out, for want of one of the two numbers: {_names(missing)}."
    return caption


def accuracy_speed_png(steps: Sequence[StepReport], *, dark: bool = False) -> bytes | None:
    """The plot as a PNG of 1600 x 960 pixels; None when no step has both numbers."""
    shown = plottable(steps)
    if not shown:
        return None
    theme = _DARK if dark else _LIGHT
    figure = Figure(figsize=(8, 4.8), dpi=200, facecolor=theme.ground, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _style(axes, shown, theme)
    links = _links(steps, shown)
    _draw_lineage(axes, links, theme)
    areas = _areas(shown)
    runtimes = list(dict.fromkeys(step.runtime or "unknown runtime" for step in shown))
    for step, area in zip(shown, areas, strict=True):
        runtime = step.runtime or "unknown runtime"
        colour = theme.runtimes[runtimes.index(runtime) % len(theme.runtimes)]
        face, edge = (colour, theme.ground) if step.number("file_bytes") else (theme.ground, colour)
        axes.scatter(*_point(step), s=area, color=face, edgecolors=edge, linewidths=1.2, zorder=3)
    if len(runtimes) > 1:
        for runtime, colour in zip(runtimes, theme.runtimes * len(runtimes), strict=False):
            axes.scatter([], [], s=45, color=colour, label=runtime)
        figure.legend(
            loc="outside upper right",
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=theme.ink,
            handletextpad=0.1,
        )
    canvas.draw()
    # labels last, and the layout frozen, so that they do not move the axes they were placed in
    figure.set_layout_engine("none")
    _label(axes, shown, areas, links, canvas, theme)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", facecolor=theme.ground)
    return buffer.getvalue()


def _names(steps: Sequence[StepReport]) -> str:
    return ", ".join(f"`{step.name}`" for step in steps)


def _point(step: StepReport) -> tuple[float, float]:
    return step.latency_ms or 0.0, step.miou_box or 0.0


def _links(steps: Sequence[StepReport], shown: Sequence[StepReport]) -> list[_Link]:
    """Each step shown with its nearest ancestor shown."""
    by_name = {step.name: step for step in steps}
    links = []
    for step in shown:
        ancestor = by_name.get(step.parent or "")
        while ancestor is not None and ancestor not in shown:
            ancestor = by_name.get(ancestor.parent or "")
        if ancestor is not None:
            links.append((ancestor, step))
    return links


def _areas(steps: Sequence[StepReport]) -> list[float]:
    sizes = [step.number("file_bytes") or 0 for step in steps]
    largest = max(sizes) or 1
    return [max(LARGEST_AREA * value / largest, SMALLEST_AREA) for value in sizes]


def _style(axes: Axes, steps: Sequence[StepReport], theme: _Theme) -> None:
    latencies, scores = zip(*(_point(step) for step in steps), strict=True)
    # differences below two hundredths of mean IoU are small, and must not fill the plot
    middle, half = (max(scores) + min(scores)) / 2, max((max(scores) - min(scores)) / 2, 0.01)
    axes.set_ylim(middle - 1.45 * half, middle + 1.45 * half)
    if max(latencies) > 4 * min(latencies):
        axes.set_xscale("log")
        spread = (max(latencies) / min(latencies)) ** 0.16
        axes.set_xlim(min(latencies) / spread, max(latencies) * spread)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        few_decades = max(latencies) < 30 * min(latencies)
        minor = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.xaxis.set_minor_formatter(minor if few_decades else NullFormatter())
    else:
        room = max((max(latencies) - min(latencies)) * 0.2, 0.1 * max(latencies))
        axes.set_xlim(max(min(latencies) - room, 0), max(latencies) + room)
    axes.set_facecolor(theme.ground)
    axes.set_xlabel("encode one picture, ms (median)", color=theme.faint)
    axes.set_ylabel("mean IoU by box", color=theme.faint)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=theme.faint, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=theme.grid)


def _draw_lineage(axes: Axes, links: Sequence[_Link], theme: _Theme) -> None:
    for start, end in links:
        ends = np.array([_point(start), _point(end)])
        axes.plot(
            ends[:, 0],
            ends[:, 1],
            color=theme.faint,
            linewidth=0.9,
            alpha=0.6,
            linestyle=(0, (4, 3)),
            zorder=2,
        )


def _label(
    axes: Axes,
    steps: Sequence[StepReport],
    areas: Sequence[float],
    links: Sequence[_Link],
    canvas: FigureCanvasAgg,
    theme: _Theme,
) -> None:
    """Write each step's name beside its marker, where it meets fewest other names, markers and lines."""
    renderer = canvas.get_renderer()
    radii = [sqrt(area / pi) for area in areas]
    taken = []
    for step, radius in zip(steps, radii, strict=True):
        reach = radius * axes.figure.dpi / 72
        x, y = _position(axes, step)
        taken.append(Bbox.from_extents(x - reach, y - reach, x + reach, y + reach))
    dots = [_position(axes, a) * (1 - t) + _position(axes, b) * t for a, b in links for t in np.linspace(0, 1, 80)]
    frame = axes.get_window_extent(renderer)
    halo = [withStroke(linewidth=3, foreground=theme.ground)]
    for index, (step, radius) in enumerate(zip(steps, radii, strict=True)):
        size = step.number("file_bytes")
        note = axes.annotate(
            f"{step.name}, {units.size(size)}" if size else step.name,
            _point(step),
            (0, 0),
            textcoords="offset points",
            fontsize=9,
            color=theme.ink,
            path_effects=halo,
            zorder=4,
        )
        # its own marker may be touched: the offsets keep clear of it
        others = [box for place, box in enumerate(taken) if place != index]
        tried = []
        for rank, (x, y, across, up) in enumerate(_places(radius)):
            note.set(position=(x, y), ha=across, va=up)
            box = note.get_window_extent(renderer)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            covered = 3 * sum(box.overlaps(other) for other in others) + 6 * outside
            tried.append((covered + any(box.contains(*dot) for dot in dots), rank, (x, y, across, up), box))
        _, _, (x, y, across, up), box = min(tried, key=lambda trial: trial[:2])
        note.set(position=(x, y), ha=across, va=up)
        taken.append(box)


def _position(axes: Axes, step: StepReport) -> np.ndarray:
    """A marker's centre in the canvas' pixels."""
    return np.asarray(axes.transData.transform(_point(step)))


def _places(radius: float) -> list[tuple[float, float, str, str]]:
    """Offsets in points from a marker's centre with the text's alignment, best first."""
    near, slant = radius + 4, 0.72 * radius + 4
    around = [
        (near, 0.0, "left", "center"),
        (0.0, near, "center", "bottom"),
        (0.0, -near, "center", "top"),
        (-near, 0.0, "right", "center"),
        (slant, slant, "left", "bottom"),
        (slant, -slant, "left", "top"),
        (-slant, slant, "right", "bottom"),
        (-slant, -slant, "right", "top"),
    ]
    # in a crowd, further out above and below
    lifted = [(0.0, sign * (near + lift), "center", "center") for lift in (14, 26, 38, 50) for sign in (1, -1)]
    return around + lifted
