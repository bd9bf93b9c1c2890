"""The table of quantization: bits x metric x twin scales, over calibration seeds, against the float parent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from sam_edge.bench.provenance import write_lines
from sam_edge.bench.repeats import Scores, repeat
from sam_edge.paired import Difference, Totals, paired_difference


@dataclass(frozen=True)
class Setting:
    """One way to quantize."""

    bits: int
    """Of weights and activations."""
    metric: str
    twin: bool
    """Twin scales; of `minmax` there are none."""
    rounding: str = "auto"
    """Of weights."""

    @property
    def label(self) -> str:
        """The row's name in the log of runs."""
        twin, rounding = " twin" if self.twin else "", "" if self.rounding == "auto" else f" {self.rounding}"
        return f"W{self.bits}A{self.bits} {self.metric}{twin}{rounding}"


@dataclass(frozen=True)
class Measured:
    """One model's scores, as shares."""

    miou_point: float
    miou_box: float
    agreement: float
    """Mean mask IoU with the float parent."""
    agreement_float_decoder: float
    """The same where the decoder computes in float, as exported graphs do."""
    loss: float
    """Task loss of quantization against the float parent (TinySAM, eq. 9), in nats a prompt."""
    loss_float_decoder: float
    """The same where the decoder computes in float."""
    file_bytes: int
    """Of `model.safetensors`."""
    totals: dict[str, list[Totals]] = field(default_factory=dict)
    """By `miou_point` and `miou_box` and by data set, what each picture scored."""

    def as_dict(self) -> dict[str, Any]:
        """The scores, without the pictures'."""
        return {name: value for name, value in asdict(self).items() if name != "totals"}


@dataclass(frozen=True)
class QuantizationRow:
    """One setting over its seeds."""

    setting: Setting
    runs: tuple[Measured, ...]
    """One for each calibration seed."""

    def drop(self, parent: Measured, prompt: str) -> Difference:
        """The mIoU lost, in shares, with its 95 % interval over pictures and seeds."""
        measure = f"miou_{prompt}"
        return paired_difference([parent.totals[measure]], [run.totals[measure] for run in self.runs])

    def as_dict(self, parent: Measured) -> dict[str, Any]:
        """For JSON: the setting, its runs and what they lost."""
        lost = {prompt: asdict(self.drop(parent, prompt)) for prompt in ("point", "box")}
        return {"setting": asdict(self.setting), "runs": [run.as_dict() for run in self.runs], "lost": lost}

    def spread(self, measure: str) -> tuple[float, float]:
        """Mean and standard deviation over seeds of what was measured, by its name."""
        values = [getattr(run, measure) for run in self.runs]
        return mean(values), stdev(values) if len(values) > 1 else 0.0


def settings(
    bits: Sequence[int], metrics: Sequence[str], twins: Sequence[bool], rounding: str = "auto"
) -> Iterator[Setting]:
    """Every setting that differs from the others."""
    for width, metric, twin in product(bits, metrics, twins):
        if metric != "minmax" or twin == twins[0]:
            yield Setting(width, metric, twin and metric != "minmax", rounding)


def compare_settings(
    measure_parent: Callable[[], Measured],
    chosen: Sequence[Setting],
    seeds: Sequence[int],
    measure: Callable[[Setting, int], Measured],
    log: Path,
    shared: Mapping[str, Any],
    on_run: Callable[[int, int, str], None] | None = None,
) -> tuple[Measured, list[QuantizationRow]]:
    """Measure the float parent, and every setting with every seed; `measure(setting, seed)` quantizes and evaluates.

    `log` keeps what was measured under the `shared` settings, and that is not measured again.

    Raises:
        SamEdgeError: `log` holds results under other settings, or cannot be read or written.
    """
    arms = {setting.label: setting for setting in chosen}
    if on_run is not None:
        on_run(0, len(arms) * len(seeds), "float")
    parent = repeat(["float"], [0], lambda *_: _scores(measure_parent()), log, shared)["float"][0]
    found = repeat(
        list(arms), seeds, lambda label, seed: _scores(measure(arms[label], seed)), log, shared, on_run=on_run
    )
    rows = [QuantizationRow(arms[label], tuple(_measured(run) for run in runs)) for label, runs in found.items()]
    return _measured(parent), rows


def _scores(measured: Measured) -> Scores:
    return Scores(measured.as_dict(), measured.totals)


def _measured(scores: Scores) -> Measured:
    return Measured(**{**scores, "file_bytes": int(scores["file_bytes"]), "totals": scores.totals})  # type: ignore[arg-type]


def rich_table(parent: Measured, rows: Sequence[QuantizationRow]) -> Table:
    """The rows for a terminal: points lost with their interval, all else as mean and spread over seeds."""
    caption = (
        f"float: mIoU {parent.miou_point:.4f} by point, {parent.miou_box:.4f} by box; in brackets what holds 95 % of a "
        "loss over pictures and seeds; all else mean ± deviation over seeds"
    )
    table = Table(title="mIoU points lost to quantization", caption=caption)
    for heading in ("bits", "metric", "twin", "rounding"):
        table.add_column(heading)
    for heading in ("point", "box", "agreement", "loss", "agreement, float decoder", "loss, float decoder", "file"):
        table.add_column(heading, justify="right")
    for row in rows:
        lost = [row.drop(parent, prompt) for prompt in ("point", "box")]
        bits = row.setting.bits
        table.add_row(
            f"W{bits}A{bits}",
            row.setting.metric,
            "on" if row.setting.twin else "off",
            row.setting.rounding,
            *(f"{100 * each.mean:.2f} ({100 * each.low:.2f} to {100 * each.high:.2f})" for each in lost),
            *(
                "{:.4f} ± {:.4f}".format(*row.spread(measure))
                for measure in ("agreement", "loss", "agreement_float_decoder", "loss_float_decoder")
            ),
            f"{mean(run.file_bytes for run in row.runs) / parent.file_bytes:.3f} x",
        )
    return table


def write_csv(
    parent: Measured, rows: Sequence[QuantizationRow], provenance: Mapping[str, Any], path: str | Path
) -> None:
    """One line per run, the float parent's first (0 bits), each with where it comes from.

    Raises:
        SamEdgeError: the disk refuses the write.
    """
    nothing = Setting(0, "float", False)
    lines = [{**asdict(nothing), "run": 0, **parent.as_dict()}]
    lines += [
        {**asdict(row.setting), "run": index, **run.as_dict()} for row in rows for index, run in enumerate(row.runs)
    ]
    write_lines(lines, provenance, path)
