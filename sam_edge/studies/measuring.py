"""What the studies share: which pictures they measure on, what they measure, and where they write it."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.bench.repeats import Scores
from sam_edge.data import Dataset, LabelledImage, is_val
from sam_edge.data.joined import Joined
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.files import atomic_file
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.paired import Totals


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
    """Mean IoU by one point and by box: the mean over the data sets, and of each; and what each picture scored."""
    runtime = TorchRuntime(model, str(model.device))
    asked = Asked("point"), Asked("box")
    found = {label: evaluate_prompts(runtime, pictures, asked) for label, pictures in measured.items()}
    values: dict[str, float] = {}
    totals: dict[str, list[Totals]] = {}
    for how, of_sets in zip(asked, zip(*found.values(), strict=True), strict=True):
        values[how.prompt] = fmean(result.miou for result in of_sets)
        totals[how.prompt] = [result.totals for result in of_sets]
    for label, results in found.items():
        for result in results:
            values[f"{label} {result.prompt}"] = result.miou
            totals[f"{label} {result.prompt}"] = [result.totals]
    return Scores(values, totals)


def write(out: Path, text: str, content: Mapping[str, object], models: Sequence[str]) -> None:
    """`ablation.md` and `ablation.json` in the output folder, the latter with where it comes from; the first is printed
    too."""
    told = {"provenance": provenance({name: used_sha256(name) for name in models}), **content}
    for name, written in (("ablation.md", text), ("ablation.json", json.dumps(told, indent=1) + "\n")):
        with atomic_file(out / name) as part:
            part.write_text(written, encoding="utf-8")
    print(text)


def say(text: str) -> None:
    """A line that is seen at once, whoever is waiting for it."""
    print(text, flush=True)
