"""SAM's neck: from the width of an image encoder to that of the mask decoder."""

from segment_anything.modeling.common import LayerNorm2d
from torch import nn

from sam_edge.segment.config import ModelConfig


def build_neck(width: int, config: ModelConfig) -> nn.Sequential:
    """SAM's two convolutions, each with its normalisation, for an encoder of `width`.

    An encoder that was trained for another decoder keeps its neck's channels (`config.neck`): then the second
    convolution goes on to the decoder's, or a projection behind the neck does.
    """
    dim = config.decoder.dim
    inner = config.neck or dim
    outer = inner if config.projection else dim
    neck = nn.Sequential(
        nn.Conv2d(width, inner, kernel_size=1, bias=False),
        LayerNorm2d(inner),
        nn.Conv2d(inner, outer, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(outer),
    )
    if config.projection:
        neck.append(nn.Conv2d(outer, dim, kernel_size=1))
    return neck
