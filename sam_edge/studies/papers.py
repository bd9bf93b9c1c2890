"""The papers' tables, with what was measured here beside what they say.

Rows of SlimSAM (arXiv 2312.05284) and TinySAM (arXiv 2312.13789) are quoted, and marked so. Rows of ours are of the
files in docs/results, on the model and the data that they name, which are not the papers'; a cell that was not measured
is empty.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from sam_edge.models.cost import cost
from sam_edge.segment.cost import Cost
from sam_edge.segment.known import KNOWN
from sam_edge.studies.slimming_tables import TABLES as ABLATIONS
from sam_edge.studies.slimming_tables import Variant

QUOTED = "quoted"


class Results(Protocol):
    """What was measured, as `sam_edge.studies.results` keeps it."""

    def get(self, name: str) -> Mapping[str, Any] | None:
        """A result by its name."""

    def current(self, name: str, model: str) -> bool:
        """Whether it is of the model that is here."""

    def whole(self, name: str) -> Mapping[str, Any] | None:
        """A result whose every model is the one that is here."""


@dataclass(frozen=True)
class Paper:
    """A table of a paper."""

    title: str
    head: tuple[str, ...]
    """The first column is the method, the second says on what."""
    quoted: tuple[tuple[str, ...], ...]
    """The paper's rows, without the second column."""
    ours: Callable[[Results], list[tuple[str, ...]]]
    """Rows that were measured here, with it."""


def render(name: str, results: Results) -> str:
    """A table as Markdown."""
    paper = TABLES[name]
    width = len(paper.head)
    rows = [(row[0], QUOTED, *row[1:]) for row in paper.quoted] + paper.ours(results)
    cells = [tuple(cell.replace("|", "\\|") for cell in (*row, *[""] * (width - len(row)))) for row in rows]
    marks = ("---", "---", *["--:"] * (width - 2))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in (paper.head, marks, *cells))
    return f"{paper.title}\n\n{lines}"


@cache
def _cost(name: str) -> Cost:
    return cost(KNOWN[name].config)


def _sizes(parameters: int, encoder_macs: int) -> tuple[str, str]:
    """As the papers write them."""
    return f"{parameters / 1e6:.1f}M", f"{encoder_macs / 1e9:.0f}G"


def _sizes_of(name: str) -> tuple[str, str]:
    """Parameters and encoder MACs as the papers count, from the architecture."""
    return _sizes(_cost(name).parameters, _cost(name).encoder_macs)


def _slimsam_1(results: Results) -> list[tuple[str, ...]]:
    """Sizes of each architecture, and nano's mean IoU by one point on each data set."""
    known = ("vit_b", "slimsam-50", "slimsam-77")
    rows: list[tuple[str, ...]] = [(name, "counted here", *_sizes_of(name)) for name in known]
    found = results.get("accuracy") or {"measured": []}
    for one in found["measured"]:
        miou = f"{100 * one['point']['miou']:.2f}%" if results.current("accuracy", "nano") else ""
        rows.append(("nano", f"{Path(one['data']).name}, val split", *_sizes_of("nano"), "", "", "", "", miou))
    return rows


def _tinysam_1(results: Results) -> list[tuple[str, ...]]:
    """AP from boxes, on nano."""
    found = results.get("ap")
    if found is None:
        return [("nano", "", "", "", "", "", "", "", "", "", "")]
    numbers = [
        f"{100 * found[key]:.1f}" if found[key] >= 0 and results.current("ap", "nano") else ""
        for key in ("ap", "ap_small", "ap_medium", "ap_large")
    ]
    boxes = "labels' boxes" if found["detections"] is None else "detector's boxes"
    boxes += ", without classes" if "split" in found else ""
    flops = f"{2 * _cost('nano').encoder_macs_with_attention / 1e9:.0f}"
    return [("nano", f"{found['images']} pictures, {boxes}", flops, *numbers)]


def _tinysam_2(results: Results) -> list[tuple[str, ...]]:
    """Everything mode's two strategies, on nano."""
    found = results.get("everything")
    if found is None:
        return [(strategy, "", "nano") for strategy in ("grid", "hierarchical")]
    now = results.current("everything", "nano")
    on = f"{Path(found['data']).name}, {found['strategies'][0]['images']} pictures"
    return [
        (
            row["strategy"],
            on,
            "nano",
            f"{row['miou']:.4f}" if now else "",
            f"{row['seconds']:.2f}" if now else "",
            f"{row['ar1000']:.3f}" if now else "",
        )
        for row in found["strategies"]
    ]


def _sets(specs: Sequence[str]) -> str:
    return ", ".join(Path(spec).name for spec in specs)


def _slimsam_ablation(table: str, results: Results) -> list[tuple[str, ...]]:
    """The rows of one of SlimSAM's tables 2 to 6, those that were run filled: one variant may be a row of several."""
    found = results.whole("slimming")
    known: dict[str, Mapping[str, Any]] = {}
    on = "" if found is None else f"nano-vit, {_sets(found['data'])}, {found['steps']} steps of {found['batch_size']}"
    for row in () if found is None else (row for rows in found["tables"].values() for row in rows):
        known[Variant(**row["variant"]).name] = row
    rows: list[tuple[str, ...]] = []
    for row in ABLATIONS[table].rows:
        measured = known.get(row.variant.name)
        miou = "" if measured is None else f"{100 * measured['scores']['point']['mean']:.2f}%"
        where = on if measured else "nano-vit"
        if table == "2":
            sizes = ("", "") if measured is None else _sizes(**measured["sizes"])
            rows.append((row.label.partition(" ")[2], where, f"{row.variant.ratio:.0%}", *sizes, miou))
        else:
            rows.append((row.label, where, miou))
    return rows


def _in_two_columns(table: str, results: Results) -> list[tuple[str, ...]]:
    """The same where the paper has a column for either part of a row's label."""
    rows = [(label.partition(", "), on, miou) for label, on, miou in _slimsam_ablation(table, results)]
    return [(first, on, second, miou) for (first, _, second), on, miou in rows]


def _tinysam_ablation(named: Mapping[str, str], results: Results) -> list[tuple[str, ...]]:
    """Rows of TinySAM's tables 3 and 4: the paper's words, and our row's name."""
    found = results.whole("distillation")
    rows = {} if found is None else found["rows"]
    on = "" if found is None else f"nano's student, {_sets(found['data'])}, {found['steps']} steps"
    return [
        (words, on if name in rows else "nano's student", "", *_mious(rows.get(name), ("box", "point")))
        for words, name in named.items()
    ]


def _mious(row: Mapping[str, Any] | None, measures: Sequence[str]) -> tuple[str, ...]:
    """Means over seeds in percent."""
    return tuple("" if row is None else f"{100 * row[measure]['mean']:.1f}" for measure in measures)


def _tinysam_5(results: Results) -> list[tuple[str, ...]]:
    """nano in float and, by the hessian metric with twin scales, in 8 and in 6 bits."""
    found = results.whole("quantization")
    names = ("nano", "nano + W8A8", "nano + W6A6")
    if found is None:
        return [(name, "") for name in names]
    settings = found["settings"]
    limit = f", {settings['limit']} pictures of each" if settings["limit"] else ""
    runs = {0: [found["float"]]}
    for row in found["rows"]:
        if row["setting"]["metric"] == "hessian" and row["setting"]["twin"]:
            runs[row["setting"]["bits"]] = row["runs"]
    return [
        (
            name,
            f"{_sets(settings['data'])}{limit}",
            "",
            "",
            *(f"{100 * fmean(run[measure] for run in runs[bits]):.1f}" for measure in ("miou_box", "miou_point")),
        )
        for name, bits in zip(names, (0, 8, 6), strict=True)
        if bits in runs
    ]


TABLES: dict[str, Paper] = {
    "slimsam-1": Paper(
        "SlimSAM, table 1: other compressed SAMs; mean IoU by one point on SA-1B. Ours: other pictures.",
        ("method", "on", "parameters", "MACs", "training set", "batch", "GPUs", "iterations", "mIoU"),
        (
            ("SAM-H", "641M", "2736G", "11M (100%)", "256", "256", "90k", "78.30%"),
            ("SAM-L", "312M", "1315G", "11M (100%)", "128", "128", "180k", "77.67%"),
            ("SAM-B", "93M", "372G", "11M (100%)", "128", "128", "180k", "73.37%"),
            ("FastSAM-s", "11M", "37G", "220k (2%)", "32", "8", "625k", "30.72%"),
            ("FastSAM-x", "68M", "330G", "220k (2%)", "32", "8", "625k", "35.41%"),
            ("MobileSAM", "9.8M", "40G", "100k (1%)", "8", "1", "100k", "62.73%"),
            ("EfficientSAM-t", "10M", "28G", "12.2M (110%)", "128", "64", "450k", "69.42%"),
            ("EfficientSAM-s", "26M", "94G", "12.2M (110%)", "128", "64", "450k", "71.19%"),
            ("EdgeSAM", "9.6M", "23G", "100k (1%)", "64", "8", "50k", "65.96%"),
            ("SlimSAM-50", "26M", "98G", "10k (0.1%)", "4", "1", "100k", "72.33%"),
            ("SlimSAM-77", "9.1M", "23G", "10k (0.1%)", "4", "1", "200k", "67.40%"),
        ),
        _slimsam_1,
    ),
    "slimsam-2": Paper(
        "SlimSAM, table 2: structural pruning, training alike at each ratio; mean IoU by one point on SA-1B.",
        ("method", "on", "ratio", "parameters", "MACs", "mIoU"),
        (
            ("Scratch Distillation", "50%", "26M", "98G", "1.63%"),
            ("Random Pruning", "50%", "26M", "98G", "71.03%"),
            ("Magnitude Pruning", "50%", "26M", "98G", "69.96%"),
            ("Hessian Pruning", "50%", "26M", "98G", "71.01%"),
            ("Taylor Pruning", "50%", "26M", "98G", "71.15%"),
            ("SlimSAM-50", "50%", "26M", "98G", "72.33%"),
            ("Scratch Distillation", "77%", "9.1M", "23G", "1.34%"),
            ("Random Pruning", "77%", "9.1M", "23G", "62.58%"),
            ("Magnitude Pruning", "77%", "9.1M", "23G", "61.60%"),
            ("Hessian Pruning", "77%", "9.1M", "23G", "63.56%"),
            ("Taylor Pruning", "77%", "9.1M", "23G", "64.26%"),
            ("SlimSAM-77", "77%", "9.1M", "23G", "67.40%"),
        ),
        partial(_slimsam_ablation, "2"),
    ),
    "slimsam-3": Paper(
        "SlimSAM, table 3: Taylor importance on labels and disturbed; mean IoU by one point on SA-1B.",
        ("method", "on", "mIoU"),
        (
            ("Taylor Pruning", "62.04%"),
            ("Disturbed Taylor Pruning", "62.31%"),
            ("SlimSAM-77 + Taylor", "63.63%"),
            ("SlimSAM-77 + Disturbed Taylor", "64.48%"),
        ),
        partial(_slimsam_ablation, "3"),
    ),
    "slimsam-4": Paper(
        "SlimSAM, table 4: intermediate aligning; mean IoU by one point on SA-1B.",
        ("step", "on", "distillation objective", "mIoU"),
        (
            ("Step 1", "Final Image Embeddings", "65.10%"),
            ("Step 1", "+ Bottleneck Features", "66.32%"),
            ("Step 2", "Final Image Embeddings", "63.91%"),
            ("Step 2", "+ Embedding Features", "64.48%"),
        ),
        partial(_in_two_columns, "4"),
    ),
    "slimsam-5": Paper(
        "SlimSAM, table 5: local and global pruning; mean IoU by one point on SA-1B.",
        ("method", "on", "normalization", "mIoU"),
        (
            ("Local Pruning", "—", "64.38%"),
            ("Global Pruning", "Mean", "63.64%"),
            ("Global Pruning", "Max", "64.35%"),
            ("Global Pruning", "Sum", "63.55%"),
            ("Global Pruning", "Gaussian", "64.48%"),
            ("Global Pruning", "Standardization", "64.14%"),
        ),
        partial(_in_two_columns, "5"),
    ),
    "slimsam-6": Paper(
        "SlimSAM, table 6: less data, as many iterations; mean IoU by one point on SA-1B.",
        ("ratio", "on", "data", "mIoU"),
        (
            ("50%", "10k", "72.33%"),
            ("50%", "5k", "71.89%"),
            ("50%", "2k", "69.79%"),
            ("77%", "10k", "67.40%"),
            ("77%", "5k", "64.47%"),
            ("77%", "2k", "61.72%"),
        ),
        partial(_in_two_columns, "6"),
    ),
    "tinysam-1": Paper(
        "TinySAM, table 1: zero-shot instance segmentation by ViTDet-H's boxes. Ours: other pictures, other boxes.",
        ("method", "on", "FLOPs (G)", "COCO AP", "APS", "APM", "APL", "LVIS AP", "APS", "APM", "APL"),
        (
            ("ViTDet-H", "-", "51.0", "32.0", "54.3", "68.9", "46.6", "35.0", "58.0", "66.3"),
            ("SAM-H", "3166", "46.5", "30.8", "51.0", "61.7", "44.7", "32.5", "57.6", "65.5"),
            ("SAM-L", "1681", "45.5", "30.2", "50.1", "60.5", "43.5", "31.1", "56.3", "65.1"),
            ("SAM-B", "677", "41.0", "28.5", "45.5", "53.4", "40.8", "29.1", "52.8", "60.7"),
            ("FastSAM", "344", "37.9", "23.9", "43.4", "50.0", "34.5", "24.6", "46.2", "50.8"),
            ("MobileSAM", "232", "41.0", "24.4", "44.5", "58.6", "37.0", "24.7", "47.8", "59.1"),
            ("TinySAM", "232", "41.9", "26.0", "45.6", "58.3", "38.6", "26.6", "49.9", "60.1"),
            ("Q-TinySAM", "61", "41.3", "25.1", "44.9", "58.1", "37.2", "25.1", "48.6", "59.3"),
        ),
        _tinysam_1,
    ),
    "tinysam-2": Paper(
        "TinySAM, table 2: everything mode, on the first 100 pictures of COCO val2017, on a V100. Ours: other "
        "pictures, another machine.",
        ("strategy", "on", "model", "mIoU", "seconds", "AR@1000"),
        (
            ("Original", "MobileSAM", "0.5963", "1.6719"),
            ("Hierarchical", "MobileSAM", "0.5958", "0.8462"),
            ("Original", "SAM-H", "0.7047", "2.4549"),
            ("Hierarchical", "SAM-H", "0.7055", "1.3537"),
            ("Original", "TinySAM", "0.6137", "1.7790"),
            ("Hierarchical", "TinySAM", "0.6061", "0.9303"),
        ),
        _tinysam_2,
    ),
    "tinysam-3": Paper(
        "TinySAM, table 3: its parts, AP on COCO. Ours: mean IoU in percent, of other networks on other pictures.",
        ("settings", "on", "AP", "mIoU by box", "by one point"),
        (
            ("Baseline", "40.5"),
            ("+ Knowledge Distillation Loss", "41.4"),
            ("+ Online Hard Prompt Sampling", "41.9"),
            ("+ Quantization", "41.3"),
        ),
        partial(
            _tinysam_ablation,
            {
                "labels only": "labels only",
                "+ distillation": "all three, random prompts",
                "+ hard prompts": "all three",
                "+ quantization": "all three, quantized",
            },
        ),
    ),
    "tinysam-4": Paper(
        "TinySAM, table 4: its losses, AP on COCO. Ours: mean IoU in percent, of other networks on other pictures.",
        ("losses", "on", "AP", "mIoU by box", "by one point"),
        (
            ("Output Loss", "41.6"),
            ("Embedding Loss, Output Loss", "41.7"),
            ("Embedding Loss, Token Loss, Output Loss", "41.9"),
        ),
        partial(
            _tinysam_ablation,
            {
                "output": "output",
                "embedding, output": "output + embedding",
                "embedding, tokens, output": "all three",
            },
        ),
    ),
    "tinysam-5": Paper(
        "TinySAM, table 5: bits, AP on COCO. Ours: mean IoU in percent, of another network on other pictures.",
        ("model", "on", "AP", "FLOPs (G)", "mIoU by box", "by one point"),
        (
            ("MobileSAM", "41.0", "232"),
            ("MobileSAM + W8A8", "39.8", "61"),
            ("MobileSAM + W6A6", "36.3", "46"),
            ("TinySAM", "41.9", "232"),
            ("TinySAM + W8A8", "41.3", "61"),
            ("TinySAM + W6A6", "38.6", "46"),
        ),
        _tinysam_5,
    ),
}
"""By name."""
