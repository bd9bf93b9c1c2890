"""The accuracy gate: the most sensitive layers go back to higher precision until the drop is small enough."""

from collections.abc import Callable
from dataclasses import dataclass, field

from sam_edge.errors import QuantizationError
from sam_edge.models.checkpoint import round_to_halves
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.ptq import OnStep, Quantizer
from sam_edge.quantize.sensitivity import sensitivity

CONFIRMED = 10
"""Layers, the worst by second order, whose drop is measured with everything else in float."""


@dataclass(frozen=True)
class GateReport:
    """What the gate measured and did; scores are shares, as mIoU."""

    float_score: float
    """Score of the float parent."""
    first_score: float
    """Score with every layer quantized."""
    score: float
    """Score of what is left."""
    sensitivities: dict[str, float]
    """Per layer, largest first: what its rounding alone adds to the task loss, nats per picture, to second order."""
    drops: dict[str, float]
    """The worst ten: the score that quantizing this layer alone costs, as measured."""
    raised: dict[str, str] = field(default_factory=dict)
    """Layers given back: `8 bits` or `float`."""


def hold_drop(
    quantizer: Quantizer,
    max_drop: float,
    validate: Callable[[EdgeSam], float],
    float_score: float,
    on_step: OnStep | None = None,
) -> GateReport:
    """Give layers back, one, two, four, ... at a time, until `validate` falls at most `max_drop` below the parent.

    The worst ten by second order are measured one by one and come first, in the order of what they cost; layers of
    fewer than 8 bits are raised to 8 bits first, and to float only where that is not enough.

    Raises:
        QuantizationError: the drop stays too large though every layer is float, or a walk without gradients.
    """
    model = quantizer.model
    first = score = validate(model)
    found = {name: sensitivity(quantizer, name) for name in quantizer.layers}
    ranked = sorted(found, key=lambda name: -found[name])
    drops = {}
    for index, name in enumerate(ranked[:CONFIRMED]):
        drops[name] = float_score - _alone(quantizer, name, validate)
        if on_step is not None:
            on_step(index + 1, min(CONFIRMED, len(ranked)), "measuring the most sensitive layers")
    order = sorted(drops, key=lambda name: -drops[name]) + ranked[CONFIRMED:]
    narrow = quantizer.options.weights < 8 or quantizer.options.activations < 8
    queue = [*((name, "8 bits") for name in order if narrow), *((name, "float") for name in order)]
    raised: dict[str, str] = {}
    taken, batch = 0, 1
    while float_score - score > max_drop and taken < len(queue):
        for name, precision in queue[taken : taken + batch]:
            integer = precision == "8 bits"
            quantizer.put(name, quantizer.integer(name, (8, 8)) if integer else quantizer.layers[name])
            raised[name] = precision
        taken, batch = taken + batch, 2 * batch
        score = validate(model)
        if on_step is not None:
            on_step(min(taken, len(queue)), len(queue), f"giving layers back: {float_score - score:.4f} below float")
    if float_score - score > max_drop:
        raise QuantizationError(f"even with every layer in float the score lies {float_score - score:.4f} below.")
    round_to_halves(model)
    return GateReport(float_score, first, score, {name: found[name] for name in ranked}, drops, raised)


def _alone(quantizer: Quantizer, name: str, validate: Callable[[EdgeSam], float]) -> float:
    """The score with one layer quantized and all others in float."""
    integers = {other: quantizer.model.get_submodule(other) for other in quantizer.layers}
    for other, module in quantizer.layers.items():
        if other != name:
            quantizer.put(other, module)
    try:
        return validate(quantizer.model)
    finally:
        for other, module in integers.items():
            quantizer.put(other, module)
