"""Widths of every block after pruning, as a plot (SlimSAM, figure 7)."""

from collections.abc import Mapping
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sam_edge.segment.config import ModelConfig

GREY, COLOURS = "#c9ced4", ("#2563b8", "#c2570c", "#15803d", "#9333a8", "#a16207", "#0e7490")
KINDS = {"q and k": "qk", "v": "v", "MLP or MBConv, hidden": "mlp"}


def block_widths(config: ModelConfig) -> dict[str, list[int]]:
    """Per kind of bottleneck, its width in every block that has it, all heads together."""
    if config.blocks:
        return {kind: [getattr(block, kind) for block in config.blocks] for kind in KINDS.values()}
    attending = [stage for stage in config.stages if stage.heads]
    return {
        "qk": [width for stage in attending for width in stage.qk_widths],
        "v": [width for stage in attending for width in stage.v_widths],
        "mlp": [width for stage in config.stages for width in stage.mlp_widths],
    }


def widths_png(before: ModelConfig, after: Mapping[str, ModelConfig]) -> bytes:
    """Bars of the blocks' widths, what was there before behind them in grey; one row per pruned model."""
    figure = Figure(figsize=(9, 0.6 + 1.7 * len(after)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(after), len(KINDS), squeeze=False)
    whole = block_widths(before)
    for (label, config), row, colour in zip(after.items(), rows, COLOURS * len(after), strict=False):
        widths = block_widths(config)
        for (title, kind), axes in zip(KINDS.items(), row, strict=True):
            _bars(axes, whole[kind], GREY)
            _bars(axes, widths[kind], colour)
            axes.set_title(f"{label}: {title}", fontsize=8, loc="left")
    for axes in rows[-1]:
        axes.set_xlabel("block", fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _bars(axes: Axes, widths: list[int], colour: str) -> None:
    axes.bar(range(len(widths)), widths, color=colour, width=0.75)
    axes.tick_params(labelsize=7, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
