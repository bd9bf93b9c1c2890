"""The command line as a user meets it: what it prints, where, and with which exit code."""

import io
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sam_edge.cli import COMMANDS, MAKE, MEASURE, USE, application, output
from sam_edge.cli.examples import EXAMPLES
from sam_edge.cli.output import progress
from sam_edge.cli.study import MODULES
from sam_edge.data.rle import encode_mask
from sam_edge.errors import SamEdgeError
from sam_edge.export.parity import Parity
from sam_edge.export.to_onnx import OnnxOptions
from sam_edge.export.to_tensorrt import TrtOptions
from sam_edge.files import claimed
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.runtimes.engines import Engine, read_engines, write_engines
from sam_edge.runtimes.folder import graph_sha256
from sam_edge.segment.config import Thresholds


@pytest.fixture
def checkpoint(small_slim, tmp_path) -> Path:
    return save_checkpoint(small_slim, tmp_path / "model")


def processor_time(*command: str) -> float:
    """The least processor time of five runs: this machine may be busy with something else."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(5):
        before = used()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(used() - before)
    return min(times)


def test_help_answers_soon_and_without_torch():
    probe = "import sys, sam_edge.cli as cli; cli.application(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
    # in starts of Python itself: a quarter of a second where that takes 0.03
    bare = processor_time("-c", "import json, pathlib, inspect, dataclasses, typing")
    assert processor_time("-m", "sam_edge", "--help") < 8 * bare


def test_a_command_imports_no_other_command():
    script = "import sys; sys.argv[1:] = ['sample', '--help']\nfrom sam_edge.cli import main\ntry: main()\n"
    script += "except SystemExit: sys.exit('sam_edge.cli.train' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize(("arguments", "exit_code"), [(["--help"], 0), ([], 2)])
def test_the_help_groups_commands_by_what_they_are_for(sam_edge, arguments, exit_code):
    code, out, err = sam_edge(*arguments)
    assert code == exit_code
    out += err
    headings = [out.index(heading) for heading in (USE, MAKE, MEASURE)]
    assert headings == sorted(headings)
    for name, (panel, _) in COMMANDS.items():
        place = out.index(f"│ {name} ")
        assert panel == max((heading for heading in (USE, MAKE, MEASURE) if out.index(heading) < place), key=out.index)


def parsed(app: Any, arguments: list[str]) -> None:
    """Parse a command line down to its command, and check every option; nothing is run."""
    command = app.commands[arguments[0]]
    # what an option claims is let go of
    with command.make_context(command.name, arguments[1:]):
        pass


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"study"}))
def test_every_command_has_examples_that_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = typer.main.get_command(application())
    for example in EXAMPLES[command]:
        parsed(app, shlex.split(example))
    with pytest.raises(Exception, match="No such option"):
        parsed(app, [*shlex.split(example), "--no-such-option"])


def test_a_shell_completes_commands_and_choices():
    def completed(words: str) -> str:
        environment = {**os.environ, "_SAM_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        command = [sys.executable, "-c", "import sys; sys.argv[0] = 'sam-edge'; from sam_edge.cli import main; main()"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert completed("sam-edge seg").split() == ["segment"]
    assert set(completed("sam-edge eval nano --prompt ").split()) == {"point", "box"}


def test_an_interruption_says_what_it_left(sam_edge, checkpoint, tmp_path, monkeypatch):
    from sam_edge.commands.workshop import quantize

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "quantize", interrupted)
    args = ("quantize", checkpoint, "--images", "synthetic:4", "--out", tmp_path / "q")
    code, out, err = sam_edge(*args)
    assert (code, out, err) == (130, "", "sam-edge: interrupted: nothing was written.\n")
    (tmp_path / "q.stages").mkdir()
    code, _, err = sam_edge(*args)
    assert code == 130
    assert f"kept in {tmp_path / 'q.stages'}, and the same command goes on" in err


def test_a_study_holds_its_out_and_says_what_an_interruption_left(sam_edge, tmp_path, monkeypatch):
    from sam_edge.studies import costs

    folder = tmp_path / "table"

    def interrupted(arguments):
        with pytest.raises(SamEdgeError, match="being written by another process"), claimed(folder):
            pass
        folder.mkdir()
        (folder / "scores.jsonl").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "main", interrupted)
    code, _, err = sam_edge("study", "costs", "nano", f"--out={folder}")
    assert code == 130
    assert f"kept in {folder / 'scores.jsonl'}, and the same command goes on" in err
    monkeypatch.setattr(costs, "main", lambda arguments: pytest.fail("not claimed"))
    with claimed(folder):
        assert sam_edge("study", "costs", "nano", "--out", folder)[0] == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_want_of_memory_is_told_in_a_line(sam_edge, checkpoint, tmp_path, monkeypatch, error):
    from sam_edge.commands.workshop import quantize

    def too_large(*_, **__):
        raise error

    monkeypatch.setattr(quantize, "quantize", too_large)
    code, out, err = sam_edge("quantize", checkpoint, "--images", "synthetic:4", "--out", tmp_path / "q")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "memory ran out: give smaller pictures" in err
    monkeypatch.setattr(quantize, "quantize", lambda *_, **__: int("a bug"))
    with pytest.raises(ValueError, match="invalid literal"):
        sam_edge("quantize", checkpoint, "--images", "synthetic:4", "--out", tmp_path / "q")


def test_an_error_leaves_no_bar_before_it(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with suppress(SamEdgeError), progress("work") as on_progress:
        on_progress(1, 2, "half")
        raise SamEdgeError("no")
    # the bar's line is erased behind it, and nothing drawn after that
    assert screen.getvalue().rstrip().endswith("\x1b[2K")


def test_a_log_gets_a_line_of_what_takes_long(monkeypatch, capsys):
    now = iter([0.0, 1.0, 15.0, 15.0, 29.0, 30.0, 30.0])
    monkeypatch.setattr(output, "monotonic", lambda: next(now))
    with progress("work") as on_progress:
        for done in range(1, 5):
            on_progress(done, 4, "stirring")
    assert capsys.readouterr() == ("", "work: stirring, 2 of 4\nwork: stirring, 4 of 4\n")


def test_show_opens_the_overlay_of_one_picture(sam_edge, checkpoint, tmp_path, monkeypatch):
    opened = []
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "p.png")
    args = ("segment", checkpoint, tmp_path / "p.png", "--point", "5,5", "--show", "--out", tmp_path / "m")
    monkeypatch.setattr(typer, "launch", lambda file: opened.append(file) or 0)
    assert sam_edge(*args)[0] == 0
    assert opened == [str(tmp_path / "m" / "overlay.png")]
    monkeypatch.setattr(typer, "launch", lambda file: 1)
    code, _, err = sam_edge(*args)
    assert code == 1
    assert "overlay.png by hand" in err
    assert sam_edge("segment", checkpoint, tmp_path, "--point", "5,5", "--show", "--out", tmp_path / "m")[0] == 2


@pytest.mark.parametrize("name", MODULES)
def test_a_study_answers_help_in_its_own_words(sam_edge, name):
    pytest.importorskip("torch", reason="most studies are the workshop's")
    code, out, _ = sam_edge("study", name, "--help")
    assert code == 0
    assert f"usage: sam-edge study {name}" in out


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"study"}))
def test_every_command_explains_each_of_its_options(sam_edge, command):
    code, out, _ = sam_edge(command, "--help")
    assert code == 0
    assert "--json" in out


def test_models_lists_names_costs_and_licences_as_one_object(sam_edge):
    code, out, _ = sam_edge("models", "--json")
    found = {row["name"]: row for row in json.loads(out)["models"]}
    assert code == 0
    assert {"vit_b", "vit_l", "vit_h", "vit_t", "slimsam-50", "slimsam-77", "nano"} <= found.keys()
    assert found["vit_b"]["encoder_macs"] == pytest.approx(369e9, rel=2e-3)
    assert all(row["licence"] for row in found.values())


def test_compress_writes_a_smaller_checkpoint_with_its_lineage(sam_edge, checkpoint, tmp_path):
    out_folder = tmp_path / "slim"
    code, out, _ = sam_edge(
        "compress",
        checkpoint,
        "--images",
        "synthetic:8:1",
        "--out",
        out_folder,
        "--epochs",
        1,
        "--workers",
        0,
        "--json",
    )
    result = json.loads(out)
    assert code == 0
    assert result["parameters"] < result["parent"]["parameters"]
    step = load_checkpoint(out_folder).config.lineage[-1]
    assert step["step"] == "compress"
    assert step["settings"]["ratio"] == 0.5
    assert len(step["parent_sha256"]) == 64
    assert not list(tmp_path.glob(".slim*"))


def test_quantize_writes_integers(sam_edge, checkpoint, tmp_path):
    code, out, _ = sam_edge(
        "quantize",
        checkpoint,
        "--images",
        "synthetic:4:1",
        "--out",
        tmp_path / "q",
        "--calibration-images",
        2,
        "--json",
    )
    assert code == 0
    assert json.loads(out)["layers"] > 20
    model = load_checkpoint(tmp_path / "q")
    assert model.config.quantization is not None
    assert str(model.image_encoder.blocks[0].attn.q.weight.dtype) == "torch.int8"


def test_the_exported_lineage_answers_eval(sam_edge, checkpoint, tmp_path):
    for command in (
        ("quantize", checkpoint, "--images", "synthetic:4:1", "--out", tmp_path / "q", "--calibration-images", 2),
        (
            "export-onnx",
            tmp_path / "q",
            "--out",
            tmp_path / "onnx",
            "--precision",
            "int8",
            "--twin",
            "--products",
            "all",
            "--decoder",
            "integers",
        ),
    ):
        assert sam_edge(*command)[0] == 0
    form = json.loads((tmp_path / "onnx" / "model.json").read_text())["integer_form"]
    assert form["float_products"] == form["float_layers"] == form["twins_as_plain"] == []
    assert form["twins_as_two_products"]
    for model in (checkpoint, tmp_path / "onnx"):
        code, out, _ = sam_edge("eval", model, "--data", "synthetic:40:2", "--limit", 2, "--json")
        assert code == 0
        assert 0 <= json.loads(out)["miou"] <= 1


@pytest.fixture
def one_graph(tiny_slim, tmp_path) -> Path:
    """An exported folder whose only graph is a rectifier, which builds in a moment."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("pixels", "embeddings")]
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["embeddings"])], "one", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "encoder.onnx")
    entry = {
        "file": "encoder.onnx",
        "sha256": graph_sha256(folder / "encoder.onnx"),
        "inputs": {"pixels": ["batch", 4]},
        "outputs": {"embeddings": ["batch", 4]},
    }
    values = {"precision": "fp32", "dialect": None, "config": json.loads(tiny_slim.config.to_json())}
    (folder / "model.json").write_text(json.dumps({**values, "graphs": {"encoder": entry}}))
    return folder


def test_export_trt_builds_engines_and_tells_their_sizes(sam_edge, one_graph, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    args = ("export-trt", one_graph, "--target", "sm89", "--max-batch", 2, "--precision", "fp32")
    code, out, _ = sam_edge(*args, "--out", tmp_path / "engines", "--json")
    assert code == 0
    (engine,) = json.loads(out)["engines"]
    assert engine["shapes"]["pixels"] == {"min": [1, 4], "opt": [1, 4], "max": [2, 4]}
    assert engine["bytes"] == (tmp_path / "engines" / engine["file"]).stat().st_size
    assert read_engines(tmp_path / "engines") == [Engine(**engine)]
    code, out, err = sam_edge(*args, "--out", tmp_path / "again")
    assert code == 0
    assert "encoder.sm89.engine " in out + err


def test_export_trt_writes_what_a_device_builds(sam_edge, one_graph, tmp_path, monkeypatch):
    from sam_edge.commands.workshop import export

    manifest = {"typed": {"precision": "fp16", "parity": {"mask_iou": 0.9934}}, "graphs": {}}
    monkeypatch.setattr(export, "write_bundle", lambda exported, out, *_: manifest)
    # no TensorRT is needed for it
    monkeypatch.setattr(export, "load_library", None)
    code, out, err = sam_edge("export-trt", one_graph, "--bundle", tmp_path / "b")
    assert code == 0
    assert "b: to be built on a device; masks in fp16 agree with float32 to IoU 0.9934" in out + err
    code, out, _ = sam_edge("export-trt", one_graph, "--bundle", tmp_path / "b", "--json")
    assert json.loads(out) == {"bundle": {"out": str(tmp_path / "b"), **manifest}}
    code, _, err = sam_edge("export-trt", one_graph)
    assert code == 2
    assert "--bundle" in err


def test_export_trt_exports_a_checkpoint_on_the_way(sam_edge, checkpoint, one_graph, tmp_path, monkeypatch):
    """The builds, which take minutes, are not this test's: it is about all that lies around them."""
    from sam_edge.commands.workshop import export

    asked = {}

    def to_onnx(model, out, images, options, *_, **__):
        asked["onnx"], asked["images"] = options, len(images)
        shutil.copytree(one_graph, out)
        return out, Parity(1.0, 0.0, 0.0, 2, 13)

    def build(exported, out, options, images, others, **_):
        asked["trt"], asked["read"], asked["judged"] = options, len(images), len(others)
        out.mkdir(exist_ok=True)
        write_engines(out, [], {"precision": "bf16", "parity": {"mask_iou": 0.9871}})
        shapes = {"pixels": {"min": [1, 4], "opt": [1, 4], "max": [1, 4]}}
        return [
            Engine(f"{name}.sm89.engine", name, "sm89", "rtx", "1.7", "int8", shapes, "0", "1", 0.5, 3_000_000)
            for name in ("encoder", "decoder")
        ]

    monkeypatch.setattr(export, "export_onnx", to_onnx)
    monkeypatch.setattr(export, "build_engines", build)
    monkeypatch.setattr(export, "load_library", lambda flavor: None)
    monkeypatch.setattr(export, "resolve_targets", lambda library, options: options.targets)
    flags = ("--target", "sm89", "--precision", "bf16", "--max-sets", 8)
    args = ("export-trt", checkpoint, *flags, "--out", tmp_path / "e")
    code, out, err = sam_edge(*args)
    assert code == 0
    assert "encoder.sm89.engine 3.00 MB, decoder.sm89.engine 3.00 MB" in out + err
    assert "masks in bf16 agree with float32 to IoU 0.9871; built, not run" in out + err
    assert asked == {
        "onnx": OnnxOptions("fp32", "tensorrt"),
        "images": 2,
        "read": 2,
        "judged": 2,
        "trt": TrtOptions("rtx", ("sm89",), max_sets=8, precision="bf16"),
    }
    code, out, _ = sam_edge(*args, "--json")
    assert code == 0
    assert [engine["bytes"] for engine in json.loads(out)["engines"]] == [3_000_000] * 2


def test_the_table_of_quantization_counts_its_seeds_and_names_its_machine(sam_edge, checkpoint, tmp_path):
    args = ("--images", "synthetic:6:1", "--data", "synthetic:8:2", "--split", "all", "--limit", 1)
    few = ("--bits", 8, "--bits", 4, "--metric", "minmax", "--seeds", 1, "--calibration-images", 1)
    outs = {}
    for seed in (0, 5):
        code, out, _ = sam_edge(
            "study", "quantization", checkpoint, *args, *few, "--seed", seed, "--out", tmp_path / str(seed), "--json"
        )
        assert code == 0
        outs[seed] = json.loads(out)
        assert json.loads((tmp_path / str(seed) / "bench.json").read_text()) == outs[seed]
        assert len(list((tmp_path / str(seed)).glob("*.csv"))) == 1
    assert [row["setting"]["bits"] for row in outs[0]["rows"]] == [8, 4]
    assert outs[0]["provenance"]["hardware"]["cpu"] == outs[5]["provenance"]["hardware"]["cpu"]
    assert outs[0]["float"] == outs[5]["float"]
    # other seed, other calibration pictures, other scales
    assert outs[0]["rows"] != outs[5]["rows"]
    wider = ("study", "quantization", checkpoint, *args, *few, "--bits", 6, "--out", tmp_path / "0", "--json")
    (tmp_path / "0" / "bench.json").unlink()
    code, out, _ = sam_edge(*wider)
    assert code == 0
    # what the folder has is not measured again
    assert [row["setting"]["bits"] for row in json.loads(out)["rows"]] == [8, 4, 6]
    assert [row["runs"] for row in json.loads(out)["rows"]][:2] == [row["runs"] for row in outs[0]["rows"]]
    # a line for the settings, the float model, and each row
    assert len((tmp_path / "0" / "scores.jsonl").read_text().splitlines()) == 5
    code, _, err = sam_edge(*wider, "--limit", 2)
    assert code == 1
    assert "other settings" in err


def test_segment_writes_overlay_records_and_masks(sam_edge, checkpoint, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    code, out, _ = sam_edge(
        "segment", checkpoint, tmp_path / "p.png", "--box", "5,5,40,30", "--out", tmp_path / "masks", "--json"
    )
    record = json.loads(out)["masks"][0]
    assert code == 0
    mask = np.array(Image.open(tmp_path / "masks" / "mask_000.png")) > 0
    assert (coco_mask.decode(record["segmentation"]).astype(bool) == mask).all()
    assert record["area"] == mask.sum()
    assert Image.open(tmp_path / "masks" / "overlay.png").size == (60, 40)


def test_everything_keeps_segment_anythings_record_keys(sam_edge, checkpoint, tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "p.png")
    code, out, _ = sam_edge(
        "segment",
        checkpoint,
        tmp_path / "p.png",
        "--everything",
        "--points-per-side",
        2,
        "--out",
        tmp_path / "m",
        "--json",
    )
    assert code == 0
    keys = {"segmentation", "bbox", "area", "predicted_iou", "stability_score", "point_coords", "crop_box"}
    assert all(keys == record.keys() for record in json.loads(out)["masks"])


@pytest.fixture
def open_checkpoint(tiny_config, make_sam, tmp_path) -> Path:
    """A model whose filters let everything pass."""
    config = tiny_config.replace(thresholds=Thresholds(pred_iou=-1.0, stability=0.0))
    return save_checkpoint(make_sam(config, seed=3), tmp_path / "open")


def test_everything_is_written_as_coco_annotations(sam_edge, open_checkpoint, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    args = ("segment", open_checkpoint, tmp_path / "p.png", "--everything", "--points-per-side", 3, "--crops", 1)
    code, out, _ = sam_edge(
        *args, "--strategy", "hierarchical", "--tau", 0.1, "--out", tmp_path / "m", "--max-memory-gb", 0.5, "--json"
    )
    found = json.loads(out)["masks"]
    assert code == 0
    assert found
    coco = COCO(tmp_path / "m" / "masks.json")
    assert coco.imgs[1] == {"id": 1, "file_name": "p.png", "width": 60, "height": 40}
    assert [annotation["area"] for annotation in coco.anns.values()] == [record["area"] for record in found]
    for index, annotation in enumerate(coco.anns.values()):
        png = np.array(Image.open(tmp_path / "m" / f"mask_{index:03d}.png")) > 0
        assert (coco.annToMask(annotation).astype(bool) == png).all()


def test_a_calibrated_model_races_and_is_evaluated(sam_edge, open_checkpoint, tmp_path):
    grid = ("--points-per-side", 5)
    code, out, _ = sam_edge(
        "calibrate",
        open_checkpoint,
        "--images",
        "synthetic:4:1",
        "--photos",
        2,
        *grid,
        "--out",
        tmp_path / "c",
        "--json",
    )
    chosen = json.loads(out)
    config = load_checkpoint(tmp_path / "c").config
    assert code == 0
    assert config.thresholds.tau == chosen["thresholds"]["tau"]
    assert config.lineage[-1]["step"] == "calibrate"
    code, out, _ = sam_edge(
        "bench", tmp_path / "c", "--everything", "--photos", 2, *grid, "--out", tmp_path / "b", "--json"
    )
    raced = json.loads(out)
    assert code == 0
    assert raced["grid_speedup"] > 0
    assert raced["hierarchical_speedup"] > 0
    assert raced["runtime_speedup"] is None
    assert [row["contender"] for row in raced["contenders"]] == [
        "segment-anything",
        "grid, torch",
        "hierarchical, torch",
    ]
    assert all(0 <= row["miou"] <= 1 for row in raced["contenders"])
    assert json.loads((tmp_path / "b" / "bench.json").read_text()) == raced
    assert len(list((tmp_path / "b").glob("*.csv"))) == 1
    code, out, _ = sam_edge(
        "eval",
        tmp_path / "c",
        "--everything",
        "--data",
        "synthetic:9:2",
        "--split",
        "all",
        "--limit",
        2,
        *grid,
        "--json",
    )
    rows = json.loads(out)["strategies"]
    assert code == 0
    assert [row["strategy"] for row in rows] == ["grid", "hierarchical"]
    assert rows[1]["asked"] == pytest.approx(1 - chosen["skipped"], abs=0.5)


def test_a_race_by_quantile_needs_no_calibrated_model(sam_edge, tiny_config, make_sam, tmp_path):
    model = make_sam(tiny_config, seed=3)
    model.mask_decoder.iou_prediction_head.layers[-1].bias.data += 3.0
    save_checkpoint(model, tmp_path / "m")
    args = ("bench", tmp_path / "m", "--everything", "--photos", 1, "--points-per-side", 8, "--json")
    code, out, _ = sam_edge(*args, "--survivors", 0.5, "--covered", 0.4)
    raced = json.loads(out)
    assert code == 0
    assert raced["thresholds"]["pred_iou"] > 0
    assert raced["contenders"][2]["points_kept"] == pytest.approx(0.6, abs=0.08)


def test_bench_measures_what_it_says_and_writes_both_files(sam_edge, checkpoint, tmp_path):
    code, out, _ = sam_edge(
        "bench", checkpoint, "--runs", 2, "--warmup", 1, "--no-memory", "--out", tmp_path / "b", "--json"
    )
    row = json.loads(out)["rows"][0]
    assert code == 0
    phases = {"pre_process", "encode", "decode_point", "decode_box", "decode_64_points", "post_process", "end_to_end"}
    assert set(row["latencies"]) == phases
    assert row["latencies"]["encode"]["min_ms"] <= row["latencies"]["encode"]["median_ms"]
    assert (tmp_path / "b" / "bench.json").is_file()
    assert len(list((tmp_path / "b").glob("*.csv"))) == 1
    again = ("bench", checkpoint, "--runs", 2, "--warmup", 0, "--no-memory", "--compare", tmp_path / "b" / "bench.json")
    code, out, _ = sam_edge(*again, "--json")
    assert code == 0
    # of two runs nothing can be told
    assert {change["verdict"] for change in json.loads(out)["changes"]} == {"too few runs to tell"}
    code, _, err = sam_edge(*again, "--everything")
    assert code == 1
    assert "are of calls" in err


def test_names_that_are_not_utf_8_are_names(sam_edge, open_checkpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:25] = True
    entry = {"segmentation": encode_mask(mask), "bbox": [5, 5, 20, 10], "point_coords": [[15, 10]]}
    for number in range(4):
        name = os.fsdecode(b"\xd5%d" % number)
        Image.fromarray(np.full((20, 30, 3), 60 * number, np.uint8)).save(photos / f"{name}.png")
        (photos / f"{name}.json").write_text(json.dumps({"annotations": [entry]}))
    for command in (
        ("eval", open_checkpoint, "--data", photos, "--split", "all"),
        ("segment", open_checkpoint, photos, "--point", "15,10", "--pictures", "--out", tmp_path / "masks"),
        ("quantize", open_checkpoint, "--images", photos, "--metric", "minmax", "--out", tmp_path / "integers"),
        ("train", open_checkpoint, "--data", photos, "--split", "all", "--steps", 1, "--out", tmp_path / "trained"),
    ):
        code, _, err = sam_edge(*command)
        assert code == 0, err
    assert len(json.loads((tmp_path / "masks" / "masks.json").read_text())["images"]) == 4


def test_average_precision_of_a_coco_file(sam_edge, checkpoint, tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    entry = {"id": 1, "image_id": 4, "category_id": 1, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}
    image = {"id": 4, "file_name": "a.png", "height": 20, "width": 30}
    content = {"images": [image], "annotations": [entry | {"segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]}]}
    (tmp_path / "instances.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": "a"}]}))
    args = ("--ap", "--results", tmp_path / "results.jsonl", "--json")
    code, out, err = sam_edge("eval", checkpoint, "--data", tmp_path / "instances.json", *args)
    assert code == 0, err
    assert json.loads(out)["masks"] == 1
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    # a folder that holds it is the file
    code, out, _ = sam_edge("eval", checkpoint, "--data", tmp_path, "--ap", "--json")
    assert code == 0
    assert json.loads(out)["instances"] == str(tmp_path / "instances.json")
    # and of a folder in SA-1B's layout, whose masks have no category
    (tmp_path / "instances.json").rename(tmp_path / "detections.json")
    rle = encode_mask(np.pad(np.ones((10, 20), bool), ((5, 5), (5, 5))))
    label = {"bbox": [5, 5, 20, 10], "point_coords": [[15, 10]], "segmentation": rle}
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [label]}))
    code, out, err = sam_edge("eval", checkpoint, "--data", tmp_path, "--ap", "--split", "all", "--json")
    assert code == 0, err
    assert (json.loads(out)["masks"], json.loads(out)["split"]) == (1, "all")
    detections = ("--detections", tmp_path / "detections.json")
    code, _, err = sam_edge("eval", checkpoint, "--data", tmp_path, "--ap", *detections)
    assert code == 1
    assert "give that file as --data" in err


@pytest.mark.parametrize(("option", "value"), [("--seed", -1), ("--limit", 0)])
def test_numbers_out_of_range_are_refused(sam_edge, checkpoint, option, value):
    code, out, err = sam_edge("eval", checkpoint, "--data", "synthetic:4", option, value)
    assert code != 0
    assert out == ""
    assert "than or equal to" in err


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("slimsam", "--views", -1),
        ("slimsam", "--batch-size", 0),
        ("slimsam", "--workers", -2),
        ("slimsam", "--epochs", -1),
        ("slimsam", "--learning-rate", "nan"),
        ("slimsam", "--importance-images", 0),
        ("tinysam", "--batch-size", 0),
        ("tinysam", "--epochs", 0),
    ],
)
def test_what_no_run_can_be_made_of_is_refused_before_there_is_any(
    sam_edge, checkpoint, tmp_path, method, option, value
):
    asked = ("--images", "nowhere", "--method", method, *(("--student", "vit_t") if method == "tinysam" else ()))
    code, out, err = sam_edge("compress", checkpoint, *asked, option, value, "--out", tmp_path / "out")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert option.strip("-").split("-")[0] in err
    assert "nowhere" not in err


BAD = {
    "unknown name": (("eval", "vit_x", "--data", "synthetic:4"), "vit_x"),
    "missing file": (("eval", "nowhere/model.pth", "--data", "synthetic:4"), "nowhere/model.pth"),
    "missing data": (("eval", "{model}", "--data", "nowhere"), "nowhere"),
    "empty folder": (("compress", "{model}", "--images", "{empty}", "--out", "{out}"), "no images"),
    "ratio": (("compress", "{model}", "--images", "synthetic:4", "--out", "{out}", "--ratio", 2), "ratio"),
    "bits": (("quantize", "{model}", "--images", "synthetic:4", "--out", "{out}", "--weights", 9), "bits"),
    "no calibration pictures": (
        ("quantize", "{model}", "--images", "synthetic:4", "--out", "{out}", "--calibration-images", 0),
        "at least one",
    ),
    "a gate without curvature": (
        ("quantize", "{model}", "--images", "nowhere", "--out", "{out}", "--max-drop", 0.1, "--metric", "mse"),
        "--metric hessian",
    ),
    "torch's integers timed": (
        ("quantize", "{model}", "--images", "nowhere", "--out", "{out}", "--runtime", "torch"),
        "--runtime onnxruntime",
    ),
    "bits of a table": (
        ("study", "quantization", "{model}", "--images", "nowhere", "--data", "nowhere", "--bits", 9),
        "bits",
    ),
    "seeds of a table": (
        ("study", "quantization", "{model}", "--images", "nowhere", "--data", "nowhere", "--seeds", 0),
        "--seeds",
    ),
    "int8 of a float model": (("export-onnx", "{model}", "--out", "{out}", "--precision", "int8"), "quantize"),
    "point outside": (("segment", "{model}", "{picture}", "--point", "999,1", "--out", "{out}"), "outside"),
    "half a label": (("segment", "{model}", "{picture}", "--point", "1,1,0.9", "--out", "{out}"), "got 0.9"),
    "box to the moon": (("segment", "{model}", "{picture}", "--box", "4,6,5e9,8", "--out", "{out}"), "in pixels"),
    "no threshold": (
        ("segment", "{model}", "{picture}", "--everything", "--pred-iou", "nan", "--out", "{out}"),
        "must be a number",
    ),
    "no bound": (
        ("segment", "{model}", "{picture}", "--everything", "--max-memory-gb", "inf", "--out", "{out}"),
        "max_memory_gb",
    ),
    "no prompt": (("segment", "{model}", "{picture}", "--out", "{out}"), "--point"),
    "not a picture": (("segment", "{model}", "{text}", "--point", "1,1", "--out", "{out}"), "note.txt"),
    # before anything else is looked at: what follows may take hours
    "out is a file": (("quantize", "{model}", "--images", "nowhere", "--out", "{text}"), "note.txt"),
    "study quantization's out": (
        ("study", "quantization", "{model}", "--images", "nowhere", "--data", "nowhere", "--out", "{text}"),
        "note.txt",
    ),
    "bench's out": (("bench", "nowhere", "--out", "{text}"), "note.txt"),
    "calibrate's out": (("calibrate", "{model}", "--images", "nowhere", "--out", "{text}"), "note.txt"),
    "card's out": (("card", "{model}", "--data", "nowhere", "--out", "{text}"), "note.txt"),
    "segment's out": (("segment", "{model}", "nowhere.png", "--everything", "--out", "{text}"), "note.txt"),
    "export's out": (("export-onnx", "{model}", "--precision", "int8", "--out", "{text}"), "note.txt"),
    "out is not ours": (("quantize", "{model}", "--images", "nowhere", "--out", "{full}"), "not empty"),
    "no tau": (
        ("segment", "{model}", "{picture}", "--everything", "--strategy", "hierarchical", "--out", "{out}"),
        "sam-edge calibrate",
    ),
    "race of two": (("bench", "{model}", "nano", "--everything"), "one model"),
    "survivors alone": (("bench", "{model}", "--everything", "--survivors", 0.3), "--covered"),
    "recipe": (("run", "{text}", "--out", "{out}"), "note.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_on_stderr_and_writes_nothing(sam_edge, checkpoint, tmp_path, case):
    places = {name: tmp_path / name for name in ("empty", "full", "out")}
    places["empty"].mkdir()
    places["full"].mkdir()
    (places["full"] / "precious.doc").write_text("mine")
    places |= {"model": checkpoint, "text": tmp_path / "note.txt", "picture": tmp_path / "p.png"}
    places["text"].write_text("= not = toml")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(places["picture"])
    args, hint = BAD[case]
    code, out, err = sam_edge(*(str(arg).format(**places) for arg in args))
    assert code == 1
    assert out == ""
    lines = [line for line in err.strip().splitlines() if line.startswith("sam-edge: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    assert hint in lines[0]
    assert not places["out"].exists()
    assert [path.name for path in places["full"].iterdir()] == ["precious.doc"]


def test_wrong_usage_exits_2(sam_edge):
    assert sam_edge("eval")[0] == 2
    assert sam_edge("eval", "nano", "--data", "synthetic:4", "--prompt", "scribble")[0] == 2
    assert sam_edge("bench", "nano", "--runtime", "torch", "--runtime", "abacus")[0] == 2
    assert sam_edge("compress", "nano", "--images", "synthetic:4", "--out", "x", "--method", "tinysam")[0] == 2
