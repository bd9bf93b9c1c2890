"""What the studies share: their command lines, which pictures they measure on, what, and where they write it."""

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.data import Dataset, LabelledImage, is_val
from sam_edge.data.joined import Joined
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.evaluate.walk import data_sha256
from sam_edge.files import atomic_file
from sam_edge.models.cost import cost
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.paired import Totals
from sam_edge.segment.runtime import Runtime
from sam_edge.studies.repeats import Scores

BY_POINT_AND_BOX = {"point": Asked("point"), "box": Asked("box")}
"""How the ablations ask."""


def parser_of(study: str, about: str | None) -> argparse.ArgumentParser:
    """The command line of `sam-edge study NAME`."""
    return argparse.ArgumentParser(
        prog=f"sam-edge study {study}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number, `least` or more."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, got {text}")
        return int(text)

    return number


def drawn(numbers: Sequence[int], limit: int | None) -> list[int]:
    """`limit` of the numbers, always the same ones, in order; all without it."""
    return sorted(random.Random(0).sample(numbers, min(limit or len(numbers), len(numbers))))


def held_out(data: Joined, limit: int | None) -> dict[str, Dataset[LabelledImage]]:
    """Up to `limit` pictures of each part's val split."""
    return {
        label: part.subset(drawn([n for n, name in enumerate(part.names) if is_val(name)], limit))
        for label, part in data.parts.items()
    }


def scores_of(model: EdgeSam, measured: Mapping[str, Dataset[LabelledImage]]) -> Scores:
    """By one point and by box, in torch, and what the model consists of."""
    counted = cost(model.config)
    sizes = {"parameters": counted.parameters, "encoder_macs": counted.encoder_macs}
    return scores_on(TorchRuntime(model, str(model.device)), measured, BY_POINT_AND_BOX, sizes)


def scores_on(
    runtime: Runtime,
    measured: Mapping[str, Dataset[LabelledImage]],
    asked: Mapping[str, Asked],
    sizes: Mapping[str, int] | None = None,
) -> Scores:
    """Mean IoU by each way to ask: the mean over the data sets, and of each; and what each picture scored."""
    found = {label: evaluate_prompts(runtime, pictures, list(asked.values())) for label, pictures in measured.items()}
    values: dict[str, float] = {}
    totals: dict[str, list[Totals]] = {}
    for how, of_sets in zip(asked, zip(*found.values(), strict=True), strict=True):
        values[how] = fmean(result.miou for result in of_sets)
        totals[how] = [result.totals for result in of_sets]
    for label, results in found.items():
        for how, result in zip(asked, results, strict=True):
            values[f"{label} {how}"] = result.miou
            totals[f"{label} {how}"] = [result.totals]
    return Scores(values, totals, sizes)


def write(
    out: Path,
    text: str,
    content: Mapping[str, object],
    models: Sequence[str],
    measured: Mapping[str, Dataset[LabelledImage]],
    *,
    as_json: bool,
) -> None:
    """`ablation.md` and `ablation.json`, the latter with where it comes from, in the output folder; one is printed."""
    seen = {label: data_sha256(pictures) for label, pictures in measured.items()}
    told = {"provenance": provenance({name: used_sha256(name) for name in models}, seen), **content}
    for name, written in (("ablation.md", text), ("ablation.json", json.dumps(told, indent=1) + "\n")):
        with atomic_file(out / name) as part:
            part.write_text(written, encoding="utf-8")
    print(json.dumps(told) if as_json else text)


def say(text: str) -> None:
    """A line that is seen at once, whoever is waiting for it."""
    print(text, file=sys.stderr, flush=True)
