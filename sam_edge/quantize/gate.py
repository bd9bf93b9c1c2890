"""The accuracy gate: the most sensitive layers go back to higher precision until the drop is small enough."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from sam_edge.errors import QuantizationError
from sam_edge.models.checkpoint import round_to_halves
from sam_edge.models.sam import EdgeSam
from sam_edge.quantize.ptq import OnStep, QuantizeOptions, Quantizer
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


def check_gate(max_drop: float, options: QuantizeOptions) -> None:
    """Raises QuantizationError where the gate could not work: what follows takes minutes."""
    if not 0 <= max_drop < 1:
        raise QuantizationError(f"--max-drop is a share, as 0.01, from 0 to 1; got {max_drop}.")
    if options.metric != "hessian" or options.curvature != "fisher":
        raise QuantizationError(
            "--max-drop ranks layers by the task's curvature: it needs --metric hessian and --curvature fisher."
        )


def hold_drop(
    quantizer: Quantizer,
    max_drop: float,
    validate: Callable[[EdgeSam], float],
    float_score: float,
    on_step: OnStep | None = None,
) -> GateReport:
    """Give layers back until `validate` falls at most `max_drop` below the parent: 1, 3, 7, ... of them, then bisected.

    The worst ten by second order are measured one by one and come first, in the order of what they cost; layers of
    fewer than 8 bits are raised to 8 bits first, and to float only where that is not enough. Where a score is not
    steady from one layer to the next, a few more may be given back than had to be, but never fewer.

    Raises:
        QuantizationError: nothing may stay quantized, or a walk without gradients (see `check_gate`).
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
    forms: dict[tuple[str, str | None], nn.Module] = {(n, None): model.get_submodule(n) for n in quantizer.layers}
    forms |= {(name, "float"): module for name, module in quantizer.layers.items()}
    raised: dict[str, str] = {}

    def give_back(count: int) -> None:
        """Have the first `count` of the queue given back, and no more."""
        nonlocal raised
        wanted = dict(queue[:count])
        for name in quantizer.layers:
            form = name, wanted.get(name)
            if form not in forms:
                forms[form] = quantizer.integer(name, (8, 8))
            if form[1] != raised.get(name):
                quantizer.put(name, forms[form])
        raised = wanted

    def score_of(count: int) -> float:
        give_back(count)
        now = validate(model)
        if on_step is not None:
            on_step(count, len(queue), f"giving layers back: {float_score - now:.4f} below float")
        return now

    too_few, taken, batch = 0, 0, 1
    while float_score - score > max_drop and taken < len(queue):
        too_few, taken = taken, min(taken + batch, len(queue))
        score, batch = score_of(taken), 2 * batch
    if float_score - score > max_drop:
        raise _too_strict(f"even with every layer in float the score lies {float_score - score:.4f} below")
    while taken - too_few > 1:
        middle = (too_few + taken) // 2
        found_there = score_of(middle)
        if float_score - found_there > max_drop:
            too_few = middle
        else:
            taken, score = middle, found_there
    give_back(taken)
    if model.config.quantization is None:
        raise _too_strict(f"no layer can be quantized for a drop of {max_drop} at most")
    round_to_halves(model)
    return GateReport(float_score, first, score, {name: found[name] for name in ranked}, drops, raised)


def _too_strict(why: str) -> QuantizationError:
    return QuantizationError(f"{why}: allow more by --max-drop, or give it more pictures by --gate-images.")


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
