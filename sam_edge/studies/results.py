"""`python -m sam_edge.studies.results`: runs what README and docs show, and writes it into their marked blocks.

`docs/results.toml` names the commands; each one's answer lies in `docs/results/NAME.json` with where it comes from. A
file whose models are not those that are here is of another model: what was measured of it renders empty until it is run
again. Between `<!-- results:NAME -->` and `<!-- /results -->` in README.md and docs/*.md nothing is written by hand.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sam_edge.bench.provenance import RANDOM, made_of, model_sha256
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.files import atomic_file
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.studies import papers
from sam_edge.studies.claims import CLAIMS
from sam_edge.studies.lineage import summaries

ROOT = Path(__file__).resolve().parents[2]
MANIFEST, RESULTS = Path("docs/results.toml"), Path("docs/results")
EMPTY = ""
"""A cell of what was not measured, or of another model than the one that is here."""
BLOCK = re.compile(r"(<!-- results:([\w.-]+) -->)(.*?)(<!-- /results -->)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A named command."""

    name: str
    command: str
    """With `{data}`, the folder of labelled data sets, `{work}`, one for what is kept between runs of the same models,
    and `{out}`, the file to write; without `{out}` what it prints is its answer."""
    models: tuple[str, ...]
    """What it measures: it is run again when one of them has changed."""
    timed: bool = False
    """Whether it takes times: then nothing else may run beside it."""

    @property
    def shown(self) -> str:
        """The command for people, without what concerns the file alone."""
        return self.command.replace(" --out {out}", "").replace(" --json", "")


def entries(root: Path = ROOT) -> dict[str, Entry]:
    """The commands by name.

    Raises:
        DataError: a manifest that cannot be read.
    """
    file = root / MANIFEST
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8"))
        return {
            name: Entry(name, one["command"], tuple(one.get("models", ())), one.get("timed", False))
            for name, one in read.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: is no list of commands ({error!r}).") from error


class Results:
    """The files of results, and whether they are of what is here."""

    def __init__(self, root: Path = ROOT) -> None:
        self._folder = root / RESULTS
        self._read: dict[str, dict[str, Any] | None] = {}
        self._here: dict[str, str | None] = {}

    def get(self, name: str) -> dict[str, Any] | None:
        """A file's content; None where there is none."""
        if name not in self._read:
            file = self._folder / f"{name}.json"
            self._read[name] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return self._read[name]

    def current(self, name: str, model: str) -> bool:
        """Whether a file holds results, and the model's weights were then what they are here.

        Of a model that is made of a known one, `nano-float` of `nano`, it is the known one's that tell.
        """
        found = self.get(name)
        if found is None:
            return False
        recorded: Mapping[str, str | None] = found["provenance"]["models"]
        told = model if self._sha256(model) is not None else made_of(model)
        return told is not None and recorded.get(told) is not None and recorded[told] == self._sha256(told)

    def whole(self, name: str) -> dict[str, Any] | None:
        """A file's content where all of its models are what they are here."""
        found = self.get(name)
        models = () if found is None else found["provenance"]["models"]
        return found if all(self.current(name, model) for model in models) else None

    def _sha256(self, model: str) -> str | None:
        if model not in self._here:
            self._here[model] = model_sha256(model)
        return self._here[model]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; its first columns, `texts` of them, are text, the others numbers."""
    marks = ["---"] * texts + ["--:"] * (len(head) - texts)
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def machine(results: Results, name: str) -> str:
    """What a result was measured on, and by what, in a sentence."""
    found = results.get(name)
    if found is None:
        return "Not measured yet."
    told = found["provenance"]
    hardware = told["hardware"]
    parts = [str(hardware.get("cpu"))]
    if hardware.get("features"):
        parts[0] += f" ({', '.join(hardware['features'])})"
    parts.append(f"{hardware.get('threads')} threads" if hardware.get("threads") != 1 else "1 thread")
    versions = [f"{library} {number}" for library, number in hardware.get("versions", {}).items() if library != "torch"]
    busy = (hardware.get("disturbance") or {}).get("other_cores")
    beside = f", beside {busy:.1f} cores of other work" if busy is not None and busy > 0.1 else ""
    commit = f", commit `{told['commit'][:7]}`" if told.get("commit") else ""
    return f"On {', '.join(parts)}{beside}; {', '.join(versions)}; {told['date'][:10]}{commit}: `{told['command']}`."


def device(results: Results) -> str:
    """What a device needs: processor time and memory of a fresh process, beside the bars."""
    rows = []
    found = results.get("device") or {"rows": []}
    for row in found["rows"]:
        now = not row["model"] or results.current("device", row["model"])
        seconds, megabytes = (row[key] if now else None for key in ("cpu_s", "megabytes"))
        held = {True: "held", False: "**not held**", None: row["note"]}[row["held"]] if now else EMPTY
        rows.append((row["what"], _number(seconds, ".1f", " s"), _number(megabytes, ".0f", " MB"), row["bars"], held))
    return "\n\n".join([table(("", "processor time", "memory", "at most", ""), rows), machine(results, "device")])


def lineage(results: Results) -> str:
    """Every network in every form in turn: medians, beside the yardstick and the best that float does here."""
    found = results.get("lineage") or {"turns": {}, "bars": []}
    networks = list(dict.fromkeys(name.split(" ")[0] for name in found["turns"]))
    rows = []
    for network in networks:
        now = results.current("lineage", f"{RANDOM}{network}")
        for form in summaries(found["turns"], network):
            cells = (
                _number(form.wall_ms, ".0f", " ms"),
                _number(form.cpu_ms, ".0f", " ms"),
                _number(form.over_yardstick, ".2f"),
                _number(form.over_best_float, ".2f"),
                _number(form.peak_bytes / 1e9, ".2f", " GB"),
            )
            rows.append((form.name, *(cells if now else [EMPTY] * len(cells))))
    head = ("encoder, one picture", "wall", "processor", "/ yardstick", "/ best float", "memory")
    return "\n\n".join([table(head, rows), machine(results, "lineage")])


def bars(results: Results) -> str:
    """The ratios that the toolkit holds itself to."""
    rows = []
    for bar in (results.get("lineage") or {"bars": []})["bars"]:
        now = all(results.current("lineage", f"{RANDOM}{name.split(' ')[0]}") for name in (*bar["ours"], *bar["peers"]))
        held = ("yes" if bar["ratio"] <= bar["most"] else "**no**") if now else EMPTY
        names = [" or ".join(bar[side]) for side in ("ours", "peers")]
        rows.append((" over ".join(names), _number(bar["ratio"] if now else None, ".3f"), f"{bar['most']:.3f}", held))
    return table(("", "ratio", "at most", "held"), rows)


GENERAL = ("coco", "coco128")
"""Data sets of photos of anything, whose masks are also counted together."""


def accuracy(results: Results) -> str:
    """nano on each data set, by each protocol of its card, and on general photos together."""
    found = results.get("accuracy") or {"measured": []}
    now = results.current("accuracy", found.get("model", "nano"))
    sets = {}
    for one in found["measured"]:
        scores = [one["box"]["miou"], one["box"]["miou_ellipse"], one["point"]["miou"]]
        scores += [one["point_multimask"]["miou"], one["point_multimask"]["miou_best_of_three"], *one["clicks"][1:]]
        sets[Path(one["data"]).name] = (one["box"]["images"], one["box"]["masks"], scores)
    if sets.keys() >= set(GENERAL):
        images, masks, of_each = zip(*(sets[name] for name in GENERAL), strict=True)
        sets[" and ".join(GENERAL)] = (sum(images), sum(masks), np.average(of_each, 0, weights=masks).tolist())
    rows = [
        (name, f"{images} / {masks}", *(_number(score if now else None, ".3f") for score in scores))
        for name, (images, masks, scores) in sets.items()
    ]
    clicks = max((len(one["clicks"]) for one in found["measured"]), default=1)
    head = ["val split of", "pictures / masks", "box", "ellipse in the box", "1 point", "most confident of three"]
    head += ["best of three", *(f"{count} points" for count in range(2, clicks + 1))]
    return "\n\n".join([table(head, rows), machine(results, "accuracy")])


def claims(results: Results) -> str:
    """What the papers claim and sam-edge chose: the difference that was measured, and what its interval says."""
    rows, told = [], []
    for name, of_study in CLAIMS.items():
        found = results.whole(name) or {"compared": ()}
        known = {(one["mine"], one["other"], one["measure"]): one for one in found["compared"]}
        for claim in of_study:
            one = known.get((claim.mine, claim.other, claim.measure))
            cells = [EMPTY] * 4
            if one is not None:
                cells = [_ahead(one), str(one["runs"]), str(one["pictures"]), claim.verdict(one)]
            rows.append((claim.source, claim.text, MEASURES.get(claim.measure, claim.measure), *cells))
        if known:
            told.append(f"- {name}: {machine(results, name)}")
    head = ("who", "claims", "measured by", "ahead by (95 % of it)", "runs", "pictures", "verdict")
    return "\n\n".join([table(head, rows, texts=3), "\n".join(told) or machine(results, "slimming")])


MEASURES = {
    "point": "one point",
    "box": "box",
    "miou_point": "one point",
    "miou_box": "box",
    "miou": "everything mode",
    "point_multimask": "one point, three masks",
}
"""Measures of mean IoU in words; any other is called what it is."""


def _ahead(one: Mapping[str, Any]) -> str:
    """A difference with its interval: of mean IoU in percentage points."""
    if one["measure"] == "seconds":
        return f"{one['mean']:.2f} s ({one['low']:.2f} to {one['high']:.2f})"
    factor, digits = (1, 4) if one["measure"] == "embedding error" else (100, 2)
    mean, low, high = (f"{factor * one[part]:+.{digits}f}" for part in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def quantization(results: Results) -> str:
    """Every way to quantize: what it loses against float, with its interval, and how far its masks are float's."""
    found = results.whole("quantization") or {"rows": []}
    rows = []
    for row in found["rows"]:
        setting, runs = row["setting"], row["runs"]
        lost = (_ahead({**row["lost"][prompt], "measure": prompt}) for prompt in ("box", "point"))
        told = (fmean(run[part] for run in runs) for part in ("agreement", "loss"))
        twin = "on" if setting["twin"] else "off"
        bits = f"W{setting['bits']}A{setting['bits']}"
        rows.append((bits, setting["metric"], twin, str(len(runs)), *lost, *(f"{value:.4f}" for value in told)))
    head = ("bits", "metric", "twin", "runs", "lost by box", "lost by one point", "agreement", "task loss")
    return "\n\n".join([table(head, rows, texts=3), machine(results, "quantization")])


def pruning(results: Results) -> str:
    """What each choice of pruning leaves of the embedding."""
    found = results.whole("pruning") or {"choices": {}}
    rows = []
    for name, choice in found["choices"].items():
        ratio, _, what = name.partition(" | ")
        error = choice["embedding error"]
        rows.append((ratio, what, f"{error['mean']:.4f} ± {error['spread']:.4f}"))
    return "\n\n".join([table(("ratio", "choice", "embedding error"), rows, texts=2), machine(results, "pruning")])


def generations(results: Results) -> str:
    """nano and the one before it, on the same pictures."""
    found = results.whole("generations") or {"scores": {}, "compared": [], "pictures": {}}
    rows = []
    for one in found["compared"]:
        label, _, how = one["measure"].rpartition(" ")
        scores = [f"{100 * found['scores'][arm][one['measure']]:.1f}" for arm in (one["mine"], one["other"])]
        rows.append((label or "all", MEASURES[how], str(one["pictures"]), *scores, _ahead(one)))
    head = ("val split of", "asked by", "pictures", "nano", "nano-vit", "nano ahead by (95 % of it)")
    return "\n\n".join([table(head, rows, texts=2), machine(results, "generations")])


def everything(results: Results) -> str:
    """What everything mode finds of the same pictures: nano, and the one before it."""
    rows = []
    for name in EVERYTHING:
        found = results.whole(name) or {"strategies": []}
        for row in found["strategies"]:
            scores = (row[key] for key in ("miou", "recall50", "ar100", "ar1000"))
            shares = (f"{row[key]:.0%}" for key in ("matching", "only_whole"))
            rows.append(
                (
                    f"{found['model']}, {row['strategy']}",
                    *(f"{s:.3f}" for s in scores),
                    f"{row['records']:.1f}",
                    *shares,
                )
            )
    head = ["", "mIoU", "recall at IoU 0.5", "AR@100", "AR@1000", "masks found", "of them match a label"]
    told = [f"- {name}: {machine(results, name)}" for name in EVERYTHING]
    return "\n\n".join([table([*head, "pictures told apart nothing"], rows), "\n".join(told)])


EVERYTHING = ("everything", "everything-nano-vit")
"""What everything mode was measured by."""


def turn(results: Results) -> str:
    """nano's times in turn with those of the one before it."""
    found = results.whole("turn")
    rows = []
    if found is not None:
        first, second = (row["latencies"] for row in found["rows"])
        for key, words in TIMED.items():
            ratio = second[key]["over_first"]
            times = (_number(side[key]["median_ms"], ".0f", " ms") for side in (first, second))
            interval = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
            rows.append((words, *times, interval, str(second[key]["runs"])))
    head = ("median", "nano-vit", "nano", "nano / nano-vit (95 % of it)", "turns")
    return "\n\n".join([table(head, rows), machine(results, "turn")])


def trials(results: Results) -> str:
    """Whether `bench`'s comparison can be believed: trials whose answer is known."""
    found = results.whole("trials")
    rows: list[tuple[str, str]] = []
    if found is not None:
        burned = found["burning"]["other_cores"]
        rows = [
            ("a contender against itself: the interval holds 1", f"{found['held']} of {found['trials']}"),
            ("against one with a twentieth more to do: found slower", f"{found['found']} of {found['trials']}"),
            ("another process burns a core: cores that others kept", _number(burned, ".1f")),
        ]
    return "\n\n".join([table(("trial after trial", "so often"), rows), machine(results, "trials")])


TIMED = {"encode": "encoder", "decode_point": "decoder, one point", "end_to_end": "picture to mask"}
"""What `bench` calls its measurements, in words."""


def _number(value: float | None, form: str, unit: str = "") -> str:
    return EMPTY if value is None else f"{value:{form}}{unit}"


def _paper(name: str, results: Results) -> str:
    return papers.render(name, results)


RENDERERS: dict[str, Callable[[Results], str]] = {
    "device": device,
    "lineage": lineage,
    "lineage-bars": bars,
    "accuracy": accuracy,
    "generations": generations,
    "everything": everything,
    "turn": turn,
    "trials": trials,
    "claims": claims,
    "quantization": quantization,
    "pruning": pruning,
    **{name: partial(_paper, name) for name in papers.TABLES},
}
"""Blocks by name."""


def rendered(text: str, results: Results, where: str) -> str:
    """A page with its blocks written anew.

    Raises:
        DataError: a block of a name that there is not, or one that is not closed.
    """
    if text.count("<!-- results:") != len(BLOCK.findall(text)):
        raise DataError(f"{where}: a block of results is not closed by <!-- /results -->.")

    def fill(match: re.Match[str]) -> str:
        if match[2] not in RENDERERS:
            raise DataError(f"{where}: there are no results {match[2]}; there are {', '.join(RENDERERS)}.")
        return f"{match[1]}\n{RENDERERS[match[2]](results)}\n{match[4]}"

    return BLOCK.sub(fill, text)


def pages(root: Path = ROOT) -> list[Path]:
    """README and docs, without what `make docs` makes."""
    found = sorted((root / "docs").rglob("*.md"))
    return [root / "README.md", *(page for page in found if "generated" not in page.relative_to(root).parts)]


def run(entry: Entry, folders: Mapping[str, str], root: Path = ROOT, threads: int | None = None) -> None:
    """Run a command in the checkout, on so many threads where that is given, and keep its answer.

    Raises:
        SamEdgeError: it failed, or its answer does not say where it comes from.
    """
    target = root / RESULTS / f"{entry.name}.json"
    with atomic_file(target) as part:
        line = entry.command.format(**folders, out=part)
        program, *rest = shlex.split(line)
        if program == "python":
            program = sys.executable
        elif program == "sam-edge":
            program, rest = sys.executable, ["-m", "sam_edge", *rest]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        done = subprocess.run(
            [program, *rest], cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise SamEdgeError(f"{entry.name}: the command failed with exit code {done.returncode}: {line}")
        if "{out}" not in entry.command:
            part.write_text(done.stdout, encoding="utf-8")
        answer = json.loads(part.read_text(encoding="utf-8"))
        if "models" not in answer.get("provenance", {}):
            raise SamEdgeError(f"{entry.name}: its answer does not say where it comes from: {line}")
        # as it stands in the manifest: folders differ from machine to machine
        answer["provenance"]["command"] = entry.shown
        answer["provenance"]["models"] |= {model: model_sha256(model) for model in entry.models}
        part.write_text(json.dumps(answer) + "\n", encoding="utf-8")


def _kept_in(work: str, entry: Entry) -> str:
    """A folder of these models alone: what was begun with others' weights would be refused, or be in the way."""
    models = " ".join(f"{model} {model_sha256(model)}" for model in entry.models)
    return f"{work}/{hashlib.sha256(models.encode()).hexdigest()[:8]}"


def is_current(entry: Entry, results: Results) -> bool:
    """Whether a result is there, by the command that stands in the manifest, of the models that are here."""
    found = results.get(entry.name)
    if found is None:
        return False
    return found["provenance"]["command"] == entry.shown and all(
        results.current(entry.name, one) for one in entry.models
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing or of another model, and write the blocks; returns the number of results not current."""
    parser = argparse.ArgumentParser(prog="python -m sam_edge.studies.results", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these, whether or not they are current")
    parser.add_argument("--data", default="../shared/data", help="folder of the labelled data sets")
    parser.add_argument("--work", default="build/results", help="what commands keep between runs")
    parser.add_argument("--jobs", type=int, default=1, help="run so many at once, but for those that take times")
    parser.add_argument("--write", action="store_true", help="run nothing: write the blocks from the files alone")
    parser.add_argument("--show", choices=sorted(RENDERERS), help="run nothing: print one table")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {given.jobs}")
    if given.show:
        print(RENDERERS[given.show](Results()))
        return 0
    known = entries()
    if unknown := set(given.names) - known.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))} in {MANIFEST}; there are {', '.join(known)}")
    stale = [known[name] for name in given.names] or [one for one in known.values() if not is_current(one, Results())]
    threads = None if given.jobs == 1 else max(cpu_threads() // given.jobs, 1)

    def failed(entry: Entry, threads: int | None) -> bool:
        print(f"{entry.name}: {entry.command}", flush=True)
        try:
            run(entry, {"data": given.data, "work": _kept_in(given.work, entry)}, threads=threads)
        except SamEdgeError as error:
            # the others are none the worse for it
            print(f"sam-edge: {error}", file=sys.stderr)
            return True
        return False

    failures: list[bool] = []
    if not given.write:
        with ThreadPoolExecutor(given.jobs) as pool:
            failures += pool.map(lambda entry: failed(entry, threads), [one for one in stale if not one.timed])
        failures += [failed(entry, None) for entry in stale if entry.timed]
    results = Results()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = rendered(text, results, page.name)
        if new != text:
            with atomic_file(page) as part:
                part.write_text(new, encoding="utf-8")
    return sum(failures)


if __name__ == "__main__":
    sys.exit(main())
