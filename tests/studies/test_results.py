"""sam_edge.studies.results and papers: what README and docs show is what the files of results hold."""

import argparse
import importlib
import json
import re
import shlex
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import typer

from sam_edge.bench.provenance import model_sha256
from sam_edge.cli import application
from sam_edge.errors import DataError, SamEdgeError
from sam_edge.studies import distillation, papers, quantization, results, slimming_tables
from sam_edge.studies.claims import CLAIMS, pairs
from sam_edge.studies.results import BLOCK, ROOT, Entry, Results, entries, pages, rendered, run

MEASURED = re.compile(
    r"\d ?(ms|s|seconds|min|minutes|hours|kB|MB|GB|GiB|J|%)(?!\w)|\btimes (faster|slower|smaller|as fast)|\b0\.\d{3}\b"
    r"|\d\.\d+ ?x\b|\d ?x (the|as|faster|slower|smaller|less|more)\b"
)
"""How a measurement reads: a time, a size, a share, a factor, a score."""
DEFINED = {
    "docs/campaign.md": ("within 30 s of a processor and\n3 GB",),
    "docs/results.md": ("95 % of the difference",),
}
"""What reads like one and is a limit or a definition, page by page."""


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_hold_what_the_files_hold(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert rendered(text, Results(), page.name) == text, "run python -m sam_edge.studies.results --write"


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_measurement_stands_outside_a_block(page: Path) -> None:
    outside = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for definition in DEFINED.get(page.relative_to(ROOT).as_posix(), ()):
        assert definition in outside, f"DEFINED holds what {page.name} does not"
        outside = outside.replace(definition, "")
    found = [match[0] for match in MEASURED.finditer(outside)]
    assert found == [], "a measurement belongs into a block of docs/results.toml, a limit or definition into DEFINED"


def test_a_measurement_is_known_by_how_it_reads() -> None:
    measured = ("takes 1.9 s here", "187 MB", "15 times faster", "a mIoU of 0.623", "2.5 x the time", "3 x faster")
    for text in (*measured, "1.8x", "loses 4 %", "4% less", "in 20 minutes"):
        assert MEASURED.search(text), text
    shapes = ("32 x 32 points", "1 x height x width", "4 x h x w")
    for text in (*shapes, "IoU 0.99 or more", "three masks", "1024 px", "sm89"):
        assert not MEASURED.search(text), text


def test_the_manifest_names_commands_and_models_that_there_are() -> None:
    found = entries()
    assert {"device", "lineage", "accuracy", "everything"} <= found.keys()
    for entry in found.values():
        assert entry.command.startswith(("python -m sam_edge.", "sam-edge "))
        assert all(model_sha256(model) for model in entry.models), entry.models


class Parsed(Exception):
    """A module's own parser took its arguments."""


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
def test_a_command_of_the_manifest_parses(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = entry.command.format(data=tmp_path, work=tmp_path / "work", out=tmp_path / "out.json")
    program, *rest = shlex.split(line)
    if program == "sam-edge":
        group = typer.main.get_command(application())
        while rest[0] in getattr(group, "commands", ()):
            group = group.commands[rest.pop(0)]
        with group.make_context("sam-edge", rest):
            return
    parse = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, given: list[str]) -> None:
        parse(self, given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(Parsed):
        importlib.import_module(rest[1]).main(rest[2:])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a manifest, a page, and results of the nano that ships."""
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results.toml").write_text('[one]\ncommand = "sam-edge models --json"\nmodels = ["nano"]\n')
    rows = [
        {"what": "installed", "model": "", "cpu_s": None, "megabytes": 250.4, "bars": "300 MB", "held": True},
        {"what": "a box", "model": "nano-onnx", "cpu_s": 1.25, "megabytes": 150.2, "bars": "2 s", "held": False},
        {"what": "float", "model": "nano-float", "cpu_s": 2.5, "megabytes": 197.0, "bars": "450 MB", "held": True},
    ]
    told = {
        "models": {"nano-onnx": model_sha256("nano-onnx"), "nano": model_sha256("nano"), "nano-float": "f"},
        "hardware": {"cpu": "A76", "threads": 1, "versions": {"onnxruntime": "1.31.1"}},
        "command": "python -m sam_edge.bench.device nano",
        "date": "2026-11-30T12:00:00+00:00",
        "commit": "0123456789",
    }
    text = json.dumps({"provenance": told, "rows": [{**row, "note": ""} for row in rows]})
    (tmp_path / "docs" / "results" / "device.json").write_text(text)
    return tmp_path


def change(checkout: Path, name: str, model: str) -> None:
    """Results as of another model."""
    file = checkout / "docs" / "results" / f"{name}.json"
    content = json.loads(file.read_text())
    content["provenance"]["models"][model] = "0" * 64
    file.write_text(json.dumps(content))


def test_a_table_is_of_the_file(checkout: Path) -> None:
    text = results.device(Results(checkout))
    assert "| installed |  | 250 MB | 300 MB | held |" in text
    assert "| a box | 1.2 s | 150 MB | 2 s | **not held** |" in text
    assert "| float | 2.5 s | 197 MB | 450 MB | held |" in text
    assert "On A76, 1 thread; onnxruntime 1.31.1; 2026-11-30, commit `0123456`" in text


def test_a_cell_of_another_model_is_empty_until_it_is_run_again(checkout: Path) -> None:
    change(checkout, "device", "nano-onnx")
    text = results.device(Results(checkout))
    assert "| a box |  |  | 2 s |  |" in text
    assert "| float | 2.5 s" in text
    # what was made of nano is of another when nano is
    change(checkout, "device", "nano")
    assert "| float |  |  | 450 MB |  |" in results.device(Results(checkout))
    # and what is of no model stays
    assert "| installed |  | 250 MB" in results.device(Results(checkout))


def test_a_block_is_filled_and_filled_again_alike(checkout: Path) -> None:
    page = "before\n<!-- results:device -->\nold 17 ms\n<!-- /results -->\nafter\n"
    once = rendered(page, Results(checkout), "page")
    assert "old" not in once
    assert once.startswith("before\n<!-- results:device -->\n|")
    assert once.endswith("<!-- /results -->\nafter\n")
    assert rendered(once, Results(checkout), "page") == once


def test_blocks_that_cannot_be_filled_are_told(checkout: Path) -> None:
    with pytest.raises(DataError, match="no results nothing"):
        rendered("<!-- results:nothing --><!-- /results -->", Results(checkout), "page")
    with pytest.raises(DataError, match="not closed"):
        rendered("<!-- results:device -->", Results(checkout), "page")


def test_the_lineage_is_shown_by_medians_and_its_bars() -> None:
    turns = {"wall_ms": [9.0, 10.0, 30.0], "cpu_ms": [8.0, 8.0, 9.0], "peak_bytes": 2e9, "file_bytes": 1}
    int8 = {**turns, "wall_ms": [2.0, 2.0, 2.0]}
    bar = {"ours": ["nano int8 onnxruntime"], "peers": ["nano yardstick"], "most": 0.5, "ratio": 0.2}

    class Made(Results):
        def get(self, name):
            known = {"random:nano": model_sha256("random:nano")}
            told = {"models": known, "hardware": {}, "command": "", "date": "", "commit": None}
            return {
                "provenance": told,
                "turns": {"nano yardstick": turns, "nano int8 onnxruntime": int8, "vit_b yardstick": turns},
                "bars": [bar],
            }

    text = results.lineage(Made())
    assert "| nano yardstick | 10 ms | 8 ms | 1.00 | 1.00 | 2.00 GB |" in text
    assert "| nano int8 onnxruntime | 2 ms | 8 ms | 0.20 | 0.20 | 2.00 GB |" in text
    # whose architecture was not recorded
    assert "| vit_b yardstick |  |  |  |  |  |" in text
    assert "| nano int8 onnxruntime over nano yardstick | 0.200 | 0.500 | yes |" in results.bars(Made())


def test_accuracy_is_shown_by_data_set_of_the_nano_that_is_here() -> None:
    def scores(miou: float) -> dict[str, float]:
        return {"miou": miou, "miou_ellipse": 0.6, "miou_best_of_three": 0.5, "images": 3, "masks": 7}

    one = {"data": "../data/coco128", "box": scores(0.7), "point": scores(0.3), "point_multimask": scores(0.4)}

    def shown(sha256: str | None, *more: dict[str, object]) -> str:
        class Made(Results):
            def get(self, name):
                told = {"models": {"nano": sha256}, "hardware": {}, "command": "", "date": "", "commit": None}
                return {"provenance": told, "model": "nano", "measured": [{**one, "clicks": [0.3, 0.45]}, *more]}

        return results.accuracy(Made())

    here = model_sha256("nano")
    assert "| coco128 | 3 / 7 | 0.700 | 0.600 | 0.300 | 0.400 | 0.500 | 0.450 |" in shown(here)
    assert "| coco128 | 3 / 7 |  |  |  |  |  |  |" in shown("0" * 64)
    assert "coco and" not in shown(here)
    # three times as many masks count three times
    other = {**one, "data": "../data/coco", "box": {**scores(0.5), "images": 5, "masks": 21}, "clicks": [0.3, 0.25]}
    assert "| coco and coco128 | 8 / 28 | 0.550 | 0.600 | 0.300 | 0.400 | 0.500 | 0.300 |" in shown(here, other)


def compared(mine: str, other: str, measure: str, mean: float, low: float, high: float) -> dict[str, object]:
    told = {"mine": mine, "other": other, "measure": measure, "mean": mean, "low": low, "high": high}
    return {**told, "runs": 2, "pictures": 20}


class OfNano(Results):
    """Files of results by name, all of `nano` as it is here, or of another."""

    def __init__(self, files: dict[str, dict[str, object]], sha256: str | None = None) -> None:
        super().__init__()
        told = {"models": {"nano": sha256 or model_sha256("nano")}, "hardware": {}, "command": "x", "date": ""}
        self.files = {name: {"provenance": {**told, "commit": None}, **content} for name, content in files.items()}

    def get(self, name):
        return self.files.get(name)


def test_a_claim_is_decided_by_its_interval() -> None:
    arms = {
        "all three": ("all three, random prompts", 0.012, 0.004, 0.02),
        "all three, random prompts": ("labels only", -0.01, -0.02, -0.001),
        # the paper itself lost 0.6 points
        "all three, quantized": ("all three", -0.001, -0.005, 0.003),
        "output + embedding": ("output", 0.01, -0.001, 0.03),
    }
    rows = [compared(mine, other, "box", *numbers) for mine, (other, *numbers) in arms.items()]
    faster = compared("grid", "hierarchical", "seconds", 1.25, 1.0, 1.5)
    files = {"distillation": {"compared": rows}, "everything": {"compared": [faster]}}
    text = results.claims(OfNano(files))
    assert "| hard prompts are ahead of random ones | box | +1.20 (+0.40 to +2.00) | 2 | 20 | shown |" in text
    assert (
        "| full-stage distillation is ahead of labels alone | box | -1.00 (-2.00 to -0.10) | 2 | 20 | opposite |"
        in text
    )
    assert "| quantization takes at most 0.6 points | box | -0.10 (-0.50 to +0.30) | 2 | 20 | shown |" in text
    assert "alone | box | +1.00 (-0.10 to +3.00) | 2 | 20 | not shown |" in text
    assert "takes less time | seconds | 1.25 s (1.00 to 1.50) | 2 | 20 | shown |" in text
    # of what was not run, or not of this model, there is the claim alone
    assert "| the tokens' loss adds to both | box |  |  |  |  |" in text
    assert "| hard prompts are ahead of random ones | box |  |  |  |  |" in results.claims(OfNano(files, "0" * 64))


def test_every_claim_is_of_arms_that_its_study_has() -> None:
    rows = {row.label for part in slimming_tables.TABLES.values() for row in part.rows}
    trained = {row.name for row in distillation.ROWS}
    ways = {one.label for one in quantization.settings((8, 6), ("hessian", "mse", "minmax"), (True, False))} | {"float"}
    known = {"slimming": rows, "distillation": trained, "quantization": ways}
    for name, arms in known.items():
        for mine, other, _ in pairs(name):
            assert {mine, other} <= arms
    assert set(CLAIMS) <= entries().keys()


def test_quantization_pruning_generations_and_turns_are_shown() -> None:
    lost = {prompt: {"mean": 0.02, "low": 0.01, "high": 0.03} for prompt in ("box", "point")}
    runs = [{"agreement": 0.9, "loss": 0.5}, {"agreement": 0.8, "loss": 0.3}]
    setting = {"bits": 6, "metric": "mse", "twin": True}
    row = {"setting": setting, "runs": runs, "lost": lost}
    text = results.quantization(OfNano({"quantization": {"rows": [row]}}))
    assert "| W6A6 | mse | on | 2 | +2.00 (+1.00 to +3.00) | +2.00 (+1.00 to +3.00) | 0.8500 | 0.4000 |" in text
    choices = {"0.5 | gradients: signed": {"embedding error": {"mean": 0.25, "spread": 0.01}}}
    text = results.pruning(OfNano({"pruning": {"choices": choices}}))
    assert "| 0.5 | gradients: signed | 0.2500 ± 0.0100 |" in text
    scores = {"nano": {"box": 0.7, "ccp box": 0.75}, "nano-vit": {"box": 0.68, "ccp box": 0.7}}
    rows = [compared("nano", "nano-vit", how, 0.02, 0.01, 0.03) for how in ("box", "ccp box")]
    text = results.generations(OfNano({"generations": {"scores": scores, "compared": rows}}))
    assert "| all | box | 20 | 70.0 | 68.0 | +2.00 (+1.00 to +3.00) |" in text
    assert "| ccp | box | 20 | 75.0 | 70.0 | +2.00 (+1.00 to +3.00) |" in text
    first, second = (
        {key: {"median_ms": ms, "runs": 20, "over_first": over} for key in results.TIMED}
        for ms, over in ((400.0, None), (100.0, {"median": 0.25, "low": 0.24, "high": 0.27}))
    )
    text = results.turn(OfNano({"turn": {"rows": [{"latencies": first}, {"latencies": second}]}}))
    assert "| encoder | 400 ms | 100 ms | 0.25 (0.24 to 0.27) | 20 |" in text
    told = {"held": 19, "found": 20, "trials": 20, "burning": {"other_cores": 0.96}}
    text = results.trials(OfNano({"trials": told}))
    assert "the interval holds 1 | 19 of 20 |" in text
    assert "found slower | 20 of 20 |" in text
    assert "cores that others kept | 1.0 |" in text
    for render in (results.trials, results.quantization, results.pruning, results.generations, results.turn):
        assert "Not measured yet." in render(OfNano({}))


def test_what_takes_times_runs_alone(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two at once each has half of the threads; a third that is timed begins when they have ended, on all."""
    begun, kept = [], set()
    both = threading.Barrier(2, timeout=10)

    def run(entry: Entry, folders: dict[str, str], threads: int | None) -> None:
        begun.append((entry.name, threads))
        kept.add(folders["work"])
        if not entry.timed:
            both.wait()
            raise SamEdgeError("no")

    models = {"a": ("nano",), "b": ("nano-vit",), "c": ("nano",)}
    known = {name: Entry(name, "", models[name], timed=name == "c") for name in "cab"}
    monkeypatch.setattr(results, "run", run)
    monkeypatch.setattr(results, "entries", lambda: known)
    monkeypatch.setattr(results, "pages", list)
    monkeypatch.setattr(results, "cpu_threads", lambda: 4)
    assert results.main(["--jobs", "2"]) == 2
    assert sorted(begun[:2]) == [("a", 2), ("b", 2)]
    assert begun[2:] == [("c", None)]
    # what was begun of one model is not gone on with of another
    assert len(kept) == 2
    with pytest.raises(SystemExit):
        results.main(["--jobs", "0"])


def test_a_command_s_answer_is_kept_with_where_it_comes_from(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = checkout / "answer.py"
    script.write_text(
        "import json, sys\n"
        "answer = {'provenance': {'models': {}, 'command': 'x'}, 'value': 3}\n"
        "open(sys.argv[1], 'w').write(json.dumps(answer)) if len(sys.argv) > 1 else print(json.dumps(answer))\n"
    )
    for name, out in (("printed", ""), ("written", " {out}")):
        entry = Entry(name, f"python {script}{out}", ("nano",))
        run(entry, {}, checkout)
        found = json.loads((checkout / "docs" / "results" / f"{name}.json").read_text())
        assert found["value"] == 3
        assert found["provenance"]["models"] == {"nano": model_sha256("nano")}
        assert results.is_current(entry, Results(checkout))
        assert not results.is_current(Entry(name, "python other", ("nano",)), Results(checkout))
        change(checkout, name, "nano")
        assert not results.is_current(entry, Results(checkout))
    script.write_text("print('{}')")
    with pytest.raises(SamEdgeError, match="does not say where"):
        run(Entry("bare", f"python {script}", ()), {}, checkout)
    script.write_text("raise SystemExit(3)")
    with pytest.raises(SamEdgeError, match="exit code 3"):
        run(Entry("bare", f"python {script}", ()), {}, checkout)
    assert not (checkout / "docs" / "results" / "bare.json").exists()


class Told(Results):
    """One result for all, of the models that are here or of others."""

    def __init__(self, found: dict[str, object] | None, now: bool = True) -> None:
        super().__init__()
        self._found, self._now = found, now

    def get(self, name: str) -> dict[str, object] | None:
        return self._found

    def current(self, name: str, model: str) -> bool:
        return self._now


@pytest.mark.parametrize("name", papers.TABLES)
def test_the_papers_rows_are_marked_and_whole(name: str) -> None:
    paper = papers.TABLES[name]
    lines = papers.render(name, Told(None)).splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert {len(row) for row in rows} == {len(paper.head)}
    quoted = [row for row in rows if row[1].strip() == papers.QUOTED]
    assert len(quoted) == len(paper.quoted)
    assert len({row[0] for row in paper.quoted}) > 1


def test_the_papers_rows_are_those_of_the_papers(shared_data: Path) -> None:
    """Every cell that is quoted stands in the paper's text."""
    folder = shared_data.parent / "papers"
    if not folder.is_dir():
        pytest.skip("no papers beside the project")
    for name, paper in papers.TABLES.items():
        text = (folder / f"{name.partition('-')[0]}.md").read_text(encoding="utf-8")
        known = re.sub(r"</?b>|\s|\[\d+\]|\(Ours\)", "", text).lower()
        for row in paper.quoted:
            for cell in row:
                # table 5 names the model once for its rows
                bare = re.sub(r"\s", "", cell.rpartition(" + ")[2] if " + W" in cell else cell)
                # table 4 ticks the losses of a row
                assert all(part in known for part in bare.lower().split(",")), (name, row, cell)


def test_what_was_not_measured_here_is_empty_beside_the_papers() -> None:
    text = papers.render("tinysam-1", Told(None))
    assert text.splitlines()[-1] == "| nano | " + " | ".join([""] * 10) + " |"
    found = {"detections": None, "images": 3, "ap": 0.25, "ap_small": -1.0, "ap_medium": 0.1, "ap_large": 0.5}
    row = papers.render("tinysam-1", Told({**found, "split": "val"})).splitlines()[-1]
    assert row.startswith("| nano | 3 pictures, labels' boxes, without classes |")
    assert "| 25.0 |  | 10.0 | 50.0 |" in row
    stale = papers.render("tinysam-1", Told(found, now=False)).splitlines()[-1]
    assert "25.0" not in stale


def test_our_rows_stand_in_every_table_that_they_belong_to() -> None:
    """One variant may be a row of several tables of SlimSAM's."""
    sizes = {"parameters": 2_400_000, "encoder_macs": 3_000_000_000}
    best = {"variant": asdict(slimming_tables.Variant()), "scores": {"point": {"mean": 0.271}}, "sizes": sizes}
    told = {"provenance": {"models": {"nano-vit": "a"}}, "data": ["../x/ccp"], "steps": 16, "batch_size": 2}
    slim = {**told, "tables": {"2": [best]}}

    def shown(name: str, found: dict[str, object], now: bool = True) -> str:
        return papers.render(name, Told(found, now))

    assert "| SlimSAM | nano-vit, ccp, 16 steps of 2 | 77% | 2.4M | 3G | 27.10% |" in shown("slimsam-2", slim)
    assert "| magnitude pruning | nano-vit | 77% |  |  |  |" in shown("slimsam-2", slim)
    assert "| alternate, disturbed Taylor | nano-vit, ccp, 16 steps of 2 | 27.10% |" in shown("slimsam-3", slim)
    assert "| step 2 | nano-vit, ccp, 16 steps of 2 | + embedding features | 27.10% |" in shown("slimsam-4", slim)
    assert "| global | nano-vit, ccp, 16 steps of 2 | Gaussian | 27.10% |" in shown("slimsam-5", slim)
    assert "| 77% | nano-vit, ccp, 16 steps of 2 | all pictures | 27.10% |" in shown("slimsam-6", slim)
    assert "27.10%" not in shown("slimsam-2", slim, now=False)
    row = {measure: {"mean": mean} for measure, mean in (("box", 0.7), ("point", 0.3))}
    student = {**told, "rows": {"all three": row}}
    assert "| + hard prompts | nano's student, ccp, 16 steps |  | 70.0 | 30.0 |" in shown("tinysam-3", student)
    assert "| embedding, tokens, output | nano's student, ccp, 16 steps |  | 70.0 | 30.0 |" in shown(
        "tinysam-4", student
    )
    assert "| output | nano's student |  |  |  |" in shown("tinysam-4", student)
    runs = [{"miou_box": 0.7, "miou_point": 0.3}, {"miou_box": 0.6, "miou_point": 0.2}]
    rows = [{"setting": {"bits": bits, "metric": "hessian", "twin": bits == 8}, "runs": runs} for bits in (8, 6)]
    found = {**told, "settings": {"data": ["a/ccp"], "limit": 8}, "float": runs[0], "rows": rows}
    text = shown("tinysam-5", found)
    assert "| nano | ccp, 8 pictures of each |  |  | 70.0 | 30.0 |" in text
    assert "| nano + W8A8 | ccp, 8 pictures of each |  |  | 65.0 | 25.0 |" in text
    # one without twin scales is not the paper's
    assert "nano + W6A6 | ccp" not in text
