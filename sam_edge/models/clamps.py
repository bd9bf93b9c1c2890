"""Convolutions before a ReLU6 that leave rounding to the layer behind it.

Of convolutions runtimes compute in integers those that are rounded right behind, so all of ours have a grid for their
output. Before a ReLU6 whose result one quantized layer takes, on a grid that ends where ReLU6 does, that layer's
rounding will do: it saturates where the clamp would, and runtimes take the clamp for a part of it.
"""

from torch import nn

from sam_edge.models.grids import Grid
from sam_edge.models.quantized import QuantizedConv2d, QuantizedLayer
from sam_edge.models.takers import takers

CLAMP = 6.0
"""Where ReLU6 ends."""


def link_clamps(encoder: nn.Module, side: int) -> int:
    """Find such convolutions, in place, as a picture of `side` pixels shows them; returns how many there are.

    What the layers behind compute in is asked each time: behind one that is in float, or has symmetric grids, the
    convolution rounds by itself.
    """
    convolutions = [module for module in encoder.modules() if isinstance(module, QuantizedConv2d)]
    for convolution in convolutions:
        convolution.rounded_by = ()
    pixels = next(encoder.parameters()).new_zeros(1, 3, side, side)
    behind = takers(encoder, lambda: encoder(pixels), (QuantizedLayer, nn.ReLU6))
    for convolution in convolutions:
        clamps = [each for each in behind.get(convolution, ()) if isinstance(each, nn.ReLU6)]
        users = [each for clamp in clamps for each in behind.get(clamp, ()) if isinstance(each, QuantizedLayer)]
        if len(users) == 1 and _ends_with_it(users[0].plan.input):
            convolution.rounded_by = (users[0],)
    return sum(bool(convolution.rounded_by) for convolution in convolutions)


def _ends_with_it(grid: Grid) -> bool:
    """Whether a grid goes from 0 to no further than ReLU6; a float's rounding of its step is no reach."""
    return grid.zero_point == 0 and grid.scale * (2**grid.bits - 1) <= CLAMP * (1 + 1e-6)
