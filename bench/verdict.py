"""Which steps of a report did not pay, said in words from the numbers alone.

A step did not pay when it is slower than its parent by more than `NOISE`, when its mean IoU is lower by more
than `MIOU_DROP`, or when it is there to make the model smaller and its file is not. A model of few bits is
held, too, against the float model of the same lineage on the same runtime: what a user would run instead.
"""

from sam_edge.bench import units
from sam_edge.bench.report_changes import MIOU_DROP, NOISE
from sam_edge.bench.report_data import Report, StepReport


def did_not_pay(report: Report) -> list[str]:
    """A sentence for each way in which a step did not pay; nothing where a number is missing."""
    found = []
    for step in report.steps:
        parent, rival = report.parent_of(step), float_rival(report, step)
        if parent is not None:
            found += [*_slower(step, parent), *_less_accurate(step, parent), *_not_smaller(step, parent)]
        if rival is not None and rival is not parent:
            found += _slower(step, rival)
    lineage = end_of_lineage(report)
    if lineage is not None and lineage[1] not in (report.parent_of(lineage[0]), float_rival(report, lineage[0])):
        found += _slower(*lineage)
    return found


def end_of_lineage(report: Report) -> tuple[StepReport, StepReport] | None:
    """The last step, and the fastest float form of the model that the lineage starts from; None where the last is that
    model itself, or where nothing of one of them was timed."""
    last, first = report.steps[-1], report.steps[0]
    forms = [step for step in report.steps if step is first or (step.parent == first.name and _is_export(step))]
    timed = {step.name: step.number("latency_ms") for step in forms}
    forms = [step for step in forms if timed[step.name]]
    if not forms or last is first or (last.parent == first.name and _is_export(last)):
        return None
    if last.number("latency_ms") is None:
        return None
    return last, min(forms, key=lambda step: timed[step.name] or 0.0)


def gained(report: Report) -> str | None:
    """What the whole lineage gained in speed over the best that its first model does on the same machine."""
    ends = end_of_lineage(report)
    if ends is None:
        return None
    (last, new), (best, old) = ((step, step.number("latency_ms") or 0.0) for step in ends)
    ratio = f"{units.times(old / new)} faster" if new < old else f"{units.times(new / old)} slower"
    return (
        f"Over the best that `{report.steps[0].name}` does on this machine: `{last.name}` on {last.runtime} encodes "
        f"{ratio} than `{best.name}` on {best.runtime}, {units.milliseconds(new)} against {units.milliseconds(old)}."
    )


def _is_export(step: StepReport) -> bool:
    return step.kind.startswith("onnx") and not _few_bits(step)


def float_rival(report: Report, step: StepReport) -> StepReport | None:
    """The nearest float relative of a step of few bits on the same runtime: an ancestor, or made from one."""
    if not _few_bits(step) or step.runtime is None:
        return None
    ancestor = report.parent_of(step)
    while ancestor is not None:
        for other in (ancestor, *(child for child in report.steps if child.parent == ancestor.name)):
            if other is not step and other.runtime == step.runtime and not _few_bits(other):
                return other
        ancestor = report.parent_of(ancestor)
    return None


def _few_bits(step: StepReport) -> bool:
    return any(word in step.kind.lower() for word in ("quantize", "int8", "int6", "int4"))


def _slower(step: StepReport, parent: StepReport) -> list[str]:
    for name, verb in (("latency_ms", "encodes"), ("end_to_end_ms", "is, end to end,")):
        value, old = step.number(name), parent.number(name)
        if value is None or old is None or old <= 0:
            continue
        if value / old <= NOISE:
            return []
        first, second = f"`{step.name}`", f"`{parent.name}`"
        if parent.runtime and step.runtime:
            first += f" on {step.runtime}" if step.runtime != parent.runtime else ""
            second += f" on {parent.runtime}"
        return [
            f"{first} {verb} {units.times(value / old)} slower than {second}: "
            f"{units.milliseconds(value)} against {units.milliseconds(old)}."
        ]
    return []


def _less_accurate(step: StepReport, parent: StepReport) -> list[str]:
    found = []
    for name, prompt in (("miou_point", "point"), ("miou_box", "box")):
        value, old = step.number(name), parent.number(name)
        # a drop of exactly the limit, as written in decimals, is within it
        if value is not None and old is not None and old - value > MIOU_DROP + 1e-9:
            found.append(
                f"`{step.name}` loses {old - value:.3f} of mean IoU by {prompt} against `{parent.name}`: "
                f"{units.score(value)} against {units.score(old)}."
            )
    return found


def _not_smaller(step: StepReport, parent: StepReport) -> list[str]:
    value, old = step.number("file_bytes"), parent.number("file_bytes")
    # what converts a model of few bits to another format is not there to shrink it again
    shrinks = "compress" in step.kind.lower() or (_few_bits(step) and not _few_bits(parent))
    if not shrinks or value is None or old is None or value < old:
        return []
    sizes = f"{units.size(value)} against {units.size(old)}"
    return [f"`{step.name}` is no smaller on disk than `{parent.name}`: {sizes}."]
