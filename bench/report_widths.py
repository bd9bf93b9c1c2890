"""Widths of every block, or convolution, after pruning, as a plot (SlimSAM, figure 7)."""

from collections.abc import Mapping
from io import BytesIO

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from sam_edge.models.timm_encoder import TimmEncoder
from sam_edge.segment.config import ModelConfig

GREY, COLOURS = "#c9ced4", ("#2563b8", "#c2570c", "#15803d", "#9333a8", "#a16207", "#0e7490")
KINDS = {"q and k": "qk", "v": "v", "MLP or MBConv, hidden": "mlp", "convolutions": "conv"}


def block_widths(config: ModelConfig) -> dict[str, list[int]]:
    """Per kind of width, what it is in every block that has it, all heads together; of a backbone of timm's, channels
    out of every convolution that is not depthwise."""
    if config.blocks:
        return {kind: [getattr(block, kind) for block in config.blocks] for kind in ("qk", "v", "mlp")}
    if config.backbone is not None:
        with torch.device("meta"):
            layers = [layer for layer in TimmEncoder(config).backbone.modules() if isinstance(layer, nn.Conv2d)]
        return {"conv": [layer.out_channels for layer in layers if layer.groups == 1]}
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
    whole = block_widths(before)
    rows = figure.subplots(len(after), len(whole), squeeze=False)
    for (label, config), row, colour in zip(after.items(), rows, COLOURS * len(after), strict=False):
        widths = block_widths(config)
        shown = [(title, kind) for title, kind in KINDS.items() if kind in whole]
        for (title, kind), axes in zip(shown, row, strict=True):
            _bars(axes, whole[kind], GREY)
            _bars(axes, widths[kind], colour)
            axes.set_title(f"{label}: {title}", fontsize=8, loc="left")
    for axes in rows[-1]:
        axes.set_xlabel("convolution" if "conv" in whole else "block", fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _bars(axes: Axes, widths: list[int], colour: str) -> None:
    axes.bar(range(len(widths)), widths, color=colour, width=0.75)
    axes.tick_params(labelsize=7, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
