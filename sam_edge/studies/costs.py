"""`sam-edge study costs MODEL`: parameters, bytes and multiply-accumulates of a model, layer by layer.

MACs are counted in the papers' convention, of linear and convolutional layers alone, and with attention's products.
Bytes are of weights in float32 and of what a layer gives, for one picture; nothing is computed (torch's meta device).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sam_edge.bench import units
from sam_edge.models.cost import LAYER_OPERATORS
from sam_edge.models.registry import architecture
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig
from sam_edge.studies.measuring import parser_of


@dataclass(frozen=True)
class LayerCost:
    """What a module of the encoder costs for one picture, what is in it included."""

    name: str
    parameters: int
    weight_bytes: int
    """In float32."""
    output_bytes: int
    """Of what it gives, in float32; 0 of what gives no tensor."""
    macs: int
    """Of linear and convolutional layers, as papers count."""
    macs_with_attention: int


def layer_costs(config: ModelConfig, depth: int = 2) -> list[LayerCost]:
    """The modules of the encoder down to `depth` levels below it, the encoder itself first."""
    with torch.device("meta"), torch.no_grad():
        model = EdgeSam(config)
        encoder = model.image_encoder
        outputs: dict[str, int] = {}
        # a list of modules computes nothing itself
        modules = {
            name: module
            for name, module in encoder.named_modules()
            if name.count(".") < depth and not isinstance(module, nn.ModuleList)
        }
        hooks = [module.register_forward_hook(_noting(outputs, name)) for name, module in modules.items()]
        with FlopCounterMode(display=False) as counter:
            model.encode(torch.zeros(1, 3, config.image_size, config.image_size))
        for hook in hooks:
            hook.remove()
    counts = counter.get_flop_counts()
    root = type(encoder).__name__
    found = []
    for name, module in modules.items():
        by_operator = counts.get(f"{root}.{name}" if name else root, {})
        layers = sum(flops for operator, flops in by_operator.items() if operator in LAYER_OPERATORS)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        whole = sum(by_operator.values())
        found.append(
            LayerCost(name or "encoder", parameters, 4 * parameters, outputs.get(name, 0), layers // 2, whole // 2)
        )
    return found


def _noting(outputs: dict[str, int], name: str) -> Any:
    def note(module: nn.Module, given: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            outputs[name] = 4 * result.numel()

    return note


def main(arguments: Sequence[str] | None = None) -> list[LayerCost]:
    """Count and print."""
    parser = parser_of("costs", __doc__)
    parser.add_argument("model", help="a known name")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    found = layer_costs(architecture(given.model), given.depth)
    if given.json:
        print(json.dumps([asdict(layer) for layer in found]))
        return found
    table = Table(title=f"{given.model}'s encoder, one picture")
    for heading in ("", "parameters", "weights", "output", "MACs", "with attention"):
        table.add_column(heading, justify="right" if heading else "left")
    for layer in found:
        counts = (units.count(value) for value in (layer.macs, layer.macs_with_attention))
        sizes = (units.size(value) for value in (layer.weight_bytes, layer.output_bytes))
        table.add_row(layer.name, units.count(layer.parameters), *sizes, *counts)
    Console().print(table)
    return found


if __name__ == "__main__":
    main()
