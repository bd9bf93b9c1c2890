"""TinySAM's table 5 on any model: bits x metric x twin scales, over calibration seeds, against the float parent.

    sam-edge study quantization nano --images photos/ --data DIR --data DIR --out runs/bits

The integers are simulated in torch. Scores are means over the data sets; agreement is the mean mask IoU with the float
parent, loss the task loss against it (TinySAM, eq. 9) in nats a prompt, and both stand again where the decoder computes
in float, as exported graphs do. What is measured is kept; a table that was cut short goes on from it.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sam_edge.bench.hardware import hardware, slug
from sam_edge.bench.provenance import provenance, used_sha256, write_lines
from sam_edge.commands.common import sample_pictures
from sam_edge.data import open_some
from sam_edge.data.split import Split
from sam_edge.errors import BenchError
from sam_edge.evaluate.miou import Asked, PromptKind, evaluate_prompts
from sam_edge.evaluate.walk import data_sha256
from sam_edge.export.parity import Answers, answers, compare
from sam_edge.export.to_onnx import OnnxOptions, as_exported
from sam_edge.files import atomic_file, check_target
from sam_edge.models.checkpoint import save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime, resolve_device
from sam_edge.paired import Difference
from sam_edge.quantize.ptq import QuantizeOptions, Rounding, quantize_model
from sam_edge.quantize.scales import check_bits
from sam_edge.quantize.search import Metric
from sam_edge.quantize.task_loss import task_loss
from sam_edge.segment.known import WEIGHTS
from sam_edge.studies.claims import pairs
from sam_edge.studies.measuring import parser_of, say, whole
from sam_edge.studies.repeats import LOG, Scores, difference, differences, mean_and_spread, repeat

COMPARED = 16
"""Pictures of each data set on which answers are compared with the float parent's: as many as are kept in memory."""
PROMPTS: tuple[PromptKind, ...] = ("point", "box")


@dataclass(frozen=True)
class Setting:
    """One way to quantize."""

    bits: int
    """Of weights and activations."""
    metric: Metric
    twin: bool
    """Twin scales; of `minmax` there are none."""
    rounding: Rounding = "auto"
    """Of weights."""

    @property
    def label(self) -> str:
        """The row's name in the log of runs."""
        twin, rounding = " twin" if self.twin else "", "" if self.rounding == "auto" else f" {self.rounding}"
        return f"W{self.bits}A{self.bits} {self.metric}{twin}{rounding}"


Rows = Mapping[Setting, Sequence[Scores]]
"""The runs of each setting, one per calibration seed."""


def settings(
    bits: Sequence[int], metrics: Sequence[Metric], twins: Sequence[bool], rounding: Rounding = "auto"
) -> Iterator[Setting]:
    """Every setting that differs from the others."""
    for width, metric, twin in product(bits, metrics, twins):
        if metric != "minmax" or twin == twins[0]:
            yield Setting(width, metric, twin and metric != "minmax", rounding)


class _EncodesOnce(TorchRuntime):
    """Keeps what the encoder makes of the first pictures: in simulated integers each takes seconds."""

    def __init__(self, model: EdgeSam, device: str, kept: dict[bytes, Tensor], most: int) -> None:
        super().__init__(model, device)
        self._kept, self._most = kept, most

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embeddings, of a picture seen before the same tensor."""
        key = sha256(pixels.tobytes()).digest()
        found = self._kept.get(key)
        if found is None:
            found = super().encode(pixels)
            if len(self._kept) < self._most:
                self._kept[key] = found
        return found


def quantization_table(
    spec: str,
    images: str,
    data: Sequence[str],
    chosen: Sequence[Setting],
    seeds: Sequence[int],
    *,
    calibration_images: int = 8,
    split: Split = "val",
    limit: int | None = None,
    device: str = "auto",
    log: Path | None = None,
) -> tuple[Scores, dict[Setting, list[Scores]]]:
    """Scores of a MODEL in float, and quantized in every chosen way, each seed with its own calibration pictures.

    `limit` draws so many pictures of each data set's split, the same for all seeds. `log` keeps each run when it ends.

    Raises:
        BenchError: no seeds.
        SamEdgeError: `log` holds runs of another model, other pictures or other data.
        QuantizationError: bits out of range.
    """
    if not seeds:
        raise BenchError("a table needs at least one calibration seed: check --seeds.")
    for setting in chosen:
        check_bits(setting.bits, "weight and activation")
    place = resolve_device(device)
    datasets = [open_some(one, split, limit=limit, seed=0) for one in data]
    pictures = [sample.image for dataset in datasets for sample in islice(dataset, COMPARED)]
    parent = load_model(spec, place)
    wanted = answers(TorchRuntime(parent, place), pictures)

    def measured(model: EdgeSam) -> Scores:
        kept: dict[bytes, Tensor] = {}

        def runtime() -> TorchRuntime:
            return _EncodesOnce(model, place, kept, len(pictures))

        got = answers(runtime(), pictures)
        asked = [Asked(prompt) for prompt in PROMPTS]
        found = zip(*(evaluate_prompts(runtime(), dataset, asked) for dataset in datasets), strict=True)
        by_prompt = {f"miou_{prompt}": of_sets for prompt, of_sets in zip(PROMPTS, found, strict=True)}
        with tempfile.TemporaryDirectory() as scratch:
            saved = save_checkpoint(model, Path(scratch) / "model", half=model.config.quantization is not None)
            size = (saved / WEIGHTS).stat().st_size
        with as_exported(model, OnnxOptions("int8", twin=True, products="all")):
            exported = answers(runtime(), pictures)
        values = {
            **{measure: mean(result.miou for result in of_sets) for measure, of_sets in by_prompt.items()},
            "agreement": compare(wanted, got).mask_iou,
            "agreement_float_decoder": compare(wanted, exported).mask_iou,
            "loss": divergence(wanted, got),
            "loss_float_decoder": divergence(wanted, exported),
            "file_bytes": size,
        }
        return Scores(values, {name: [result.totals for result in of_sets] for name, of_sets in by_prompt.items()})

    arms = {setting.label: setting for setting in chosen}

    def measure(label: str, seed: int) -> Scores:
        model, how = load_model(spec, place), arms[label]
        options = QuantizeOptions(
            weights=how.bits,
            activations=how.bits,
            metric=how.metric,
            twin=how.twin,
            rounding=how.rounding,
            seed=seed,
        )
        quantize_model(model, sample_pictures(images, calibration_images, seed), options)
        return measured(model)

    shared = {
        "model": weights_sha256(parent),
        "images": images,
        "data": list(data),
        "calibration_images": calibration_images,
        "split": split,
        "limit": limit,
    }
    with tempfile.TemporaryDirectory() as scratch:
        kept_in = log or Path(scratch) / LOG
        of_parent = repeat(["float"], [0], lambda *_: measured(parent), kept_in, shared, say)["float"][0]
        found = repeat(list(arms), seeds, measure, kept_in, shared, say)
    return of_parent, {arms[label]: runs for label, runs in found.items()}


def divergence(wanted: Sequence[Answers], got: Sequence[Answers]) -> float:
    """What `hessian` makes small, the task loss of answers, in nats: its mean over pictures and prompts."""
    return mean(
        float(task_loss(*map(torch.from_numpy, (b.logits, b.iou, a.logits, a.iou)))) / a.logits.shape[1]
        for a, b in zip(wanted, got, strict=True)
    )


def lost(parent: Scores, runs: Sequence[Scores]) -> Iterator[Difference]:
    """The mIoU lost to integers by a point and by a box, with what holds 95 % of it over pictures and seeds."""
    for prompt in PROMPTS:
        found = difference([parent], runs, f"miou_{prompt}")
        assert found is not None
        yield found


def as_dict(parent: Scores, rows: Rows) -> dict[str, Any]:
    """For JSON: the float parent, and of each setting its runs and what they lost."""
    arms = {"float": [parent]} | {setting.label: runs for setting, runs in rows.items()}
    return {
        "float": parent,
        "rows": [
            {
                "setting": asdict(setting),
                "runs": runs,
                "lost": {prompt: asdict(each) for prompt, each in zip(PROMPTS, lost(parent, runs), strict=True)},
            }
            for setting, runs in rows.items()
        ],
        "compared": differences(arms, pairs("quantization")),
    }


def rich_table(parent: Scores, rows: Rows) -> Table:
    """The rows for a terminal: points lost with their interval, all else as mean and spread over seeds."""
    caption = (
        f"float: mIoU {parent['miou_point']:.4f} by point, {parent['miou_box']:.4f} by box; in brackets what holds "
        "95 % of a loss over pictures and seeds; all else mean ± deviation over seeds"
    )
    table = Table(title="mIoU points lost to quantization", caption=caption)
    for heading in ("bits", "metric", "twin", "rounding"):
        table.add_column(heading)
    for heading in ("point", "box", "agreement", "loss", "agreement, float decoder", "loss, float decoder", "file"):
        table.add_column(heading, justify="right")
    for setting, runs in rows.items():
        table.add_row(
            f"W{setting.bits}A{setting.bits}",
            setting.metric,
            "on" if setting.twin else "off",
            setting.rounding,
            *(f"{100 * each.mean:.2f} ({100 * each.low:.2f} to {100 * each.high:.2f})" for each in lost(parent, runs)),
            *(
                "{:.4f} ± {:.4f}".format(*mean_and_spread(runs, measure))
                for measure in ("agreement", "loss", "agreement_float_decoder", "loss_float_decoder")
            ),
            f"{mean(run['file_bytes'] for run in runs) / parent['file_bytes']:.3f} x",
        )
    return table


def write_csv(parent: Scores, rows: Rows, told: Mapping[str, Any], path: Path) -> None:
    """One line per run, the float parent's first (0 bits), each with where it comes from.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    lines = [{"bits": 0, "metric": "float", "twin": False, "rounding": "auto", "run": 0, **parent}]
    lines += [
        {**asdict(setting), "run": index, **run} for setting, runs in rows.items() for index, run in enumerate(runs)
    ]
    write_lines(lines, told, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, write, print."""
    parser = parser_of("quantization", __doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a float MODEL")
    add("--images", required=True, metavar="DIR", help="photos to calibrate on, without labels")
    add("--data", action="append", required=True, metavar="DIR", help="labelled pictures; repeat for more")
    add("--bits", action="append", type=int, help="of weights and activations; repeat for more; 8 and 6 by default")
    add("--metric", action="append", choices=get_args(Metric), help="repeat for more; all by default")
    add("--twin", action=argparse.BooleanOptionalAction, help="twin scales on or off only; both by default")
    add("--rounding", choices=get_args(Rounding), default="auto", help="how weights are rounded")
    add("--seeds", type=int, default=3, help="calibration seeds from --seed on, each with pictures of its own")
    add("--calibration-images", type=int, default=8, help="pictures that scales are searched on")
    add("--split", choices=get_args(Split), default="val", help="part of the data, by the hash of the file name")
    add("--limit", type=whole(1), help="pictures of each data set, the same for all seeds; all by default")
    add("--out", type=Path, help="folder for bench.json and a CSV of one line per run; begun tables go on there")
    add("--json", action="store_true", help="print one JSON object")
    add("--seed", type=whole(0), default=0, help="the first seed")
    add("--device", default="auto", help="where the model runs")
    args = parser.parse_args(arguments)
    out: Path | None = args.out
    if out is not None and not (out / LOG).is_file():
        check_target(out)
    twins = (True, False) if args.twin is None else (args.twin,)
    chosen = list(settings(args.bits or (8, 6), args.metric or get_args(Metric), twins, args.rounding))
    asked = {name: getattr(args, name) for name in ("calibration_images", "split", "limit", "device")}
    seeds = range(args.seed, args.seed + args.seeds)
    log = None if out is None else out / LOG
    parent, rows = quantization_table(args.model, args.images, args.data, chosen, seeds, log=log, **asked)
    seen = {one: data_sha256(open_some(one, args.split, limit=args.limit, seed=0)) for one in args.data}
    machine = hardware()
    told = provenance({args.model: used_sha256(args.model)}, seen, machine)
    given = {name: getattr(args, name) for name in ("model", "images", "data", "seeds", "seed")}
    result = {"settings": {**given, **asked}, "provenance": told, **as_dict(parent, rows)}
    if out is not None:
        with atomic_file(out / "bench.json") as part:
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_csv(parent, rows, told, out / f"{slug(machine)}.csv")
    if args.json:
        print(json.dumps(result))
    else:
        Console().print(rich_table(parent, rows))


if __name__ == "__main__":
    main()
