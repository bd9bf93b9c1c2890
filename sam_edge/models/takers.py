"""Which layer takes what another has made: modules alone do not say in which order they are called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def takers(
    model: nn.Module, run: Callable[[], object], kinds: tuple[type[nn.Module], ...]
) -> dict[nn.Module, list[nn.Module]]:
    """Of each module of these kinds those of them that take its very result, as `run`, without gradients, shows it.

    What a module does in place is its result: who takes that is not one of those who take its input.
    """
    made: dict[int, tuple[nn.Module, Any]] = {}
    found: dict[nn.Module, list[nn.Module]] = {}

    def see(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        if id(given[0]) in made:
            found.setdefault(made[id(given[0])][0], []).append(module)
        # kept, so that no other tensor comes to its place
        made[id(result)] = module, result

    hooks = [each.register_forward_hook(see) for each in model.modules() if isinstance(each, kinds)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
