"""Convolutions before a ReLU6 that leave rounding to the layer behind it.

Of convolutions runtimes compute in integers those that are rounded right behind, so all of ours have a grid for their
output. Before a ReLU6 whose result one quantized layer takes, on a grid that ends where ReLU6 does, that layer's
rounding will do: it saturates where the clamp would, and runtimes take the clamp for a part of it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sam_edge.models.grids import Grid
from sam_edge.models.quantized import QuantizedConv2d, QuantizedLayer

CLAMP = 6.0
"""Where ReLU6 ends."""


def link_clamps(encoder: nn.Module, side: int) -> int:
    """Find such convolutions, in place, as a picture of `side` pixels shows them; returns how many there are.

    What the layers behind compute in is asked each time: behind one that is in float, or has symmetric grids, the
    convolution rounds by itself.
    """
    made: dict[int, QuantizedConv2d] = {}
    clamped: dict[int, QuantizedConv2d] = {}
    takers: dict[QuantizedConv2d, list[QuantizedLayer]] = {}
    seen: list[Tensor] = []

    def convolved(module: nn.Module, _: Any, result: Tensor) -> None:
        assert isinstance(module, QuantizedConv2d)
        # kept, so that no other tensor comes to its place
        seen.append(result)
        made[id(result)], module.rounded_by = module, ()

    def clamp(_: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        seen.append(result)
        if (convolution := made.get(id(given[0]))) is not None:
            clamped[id(result)] = convolution

    def taken(module: nn.Module, given: tuple[Tensor]) -> None:
        assert isinstance(module, QuantizedLayer)
        if (convolution := clamped.get(id(given[0]))) is not None:
            takers.setdefault(convolution, []).append(module)

    hooks = []
    for module in encoder.modules():
        if isinstance(module, QuantizedLayer):
            hooks.append(module.register_forward_pre_hook(taken))
        if isinstance(module, QuantizedConv2d):
            hooks.append(module.register_forward_hook(convolved))
        if isinstance(module, nn.ReLU6):
            hooks.append(module.register_forward_hook(clamp))
    try:
        with torch.no_grad():
            encoder(next(encoder.parameters()).new_zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    found = {convolution: users[0] for convolution, users in takers.items() if len(users) == 1}
    for convolution, user in found.items():
        if _ends_with_it(user.plan.input):
            convolution.rounded_by = (user,)
    return sum(bool(convolution.rounded_by) for convolution in found)


def _ends_with_it(grid: Grid) -> bool:
    """Whether a grid goes from 0 to no further than ReLU6; a float's rounding of its step is no reach."""
    return grid.zero_point == 0 and grid.scale * (2**grid.bits - 1) <= CLAMP * (1 + 1e-6)
