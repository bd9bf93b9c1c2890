"""`sam-edge train` as a process: killed, resumed, in company, and told nonsense."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sam_edge.commands.workshop.train import parse_data, read_config
from sam_edge.errors import CheckpointError, DataError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint, weights_sha256
from sam_edge.training.loop import learning_rate_at

SETTINGS = {
    "--data": "synthetic:30",
    "--steps": 8,
    "--batch-size": 4,
    "--learning-rate": 1e-3,
    "--warmup-steps": 2,
    "--prompts": 3,
    "--rounds": 2,
    "--interactive-share": 0.5,
    "--copy-paste": 0.5,
    "--degrade": 0.2,
    "--workers": 0,
    "--validate-every": 3,
    "--validation-images": 2,
    "--device": "cpu",
}


def arguments(config: Path, out: Path, **changes: object) -> list[str]:
    """The command line of a short run; `batch_size=2` changes `--batch-size`."""
    settings = SETTINGS | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    options = [str(part) for pair in settings.items() if pair[1] is not None for part in pair]
    return ["train", "--config", str(config), "--out", str(out), "--json", *options]


@pytest.fixture
def config(tiny_config, tmp_path) -> Path:
    """The tiny SAM as a file to train from scratch."""
    file = tmp_path / "tiny.json"
    file.write_text(tiny_config.replace(arch="slim_vit").to_json())
    return file


@pytest.fixture
def run(sam_edge):
    """Runs a command line in this process: (exit code, JSON result or None, stderr)."""

    def call(args: list[str]) -> tuple[int, dict | None, str]:
        code, out, err = sam_edge(*args)
        return code, json.loads(out) if out else None, err

    return call


def saved_step(state: Path) -> int:
    """How far the run of a state file is; 0 without one."""
    if not state.is_file():
        return 0
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["progress"])["step"]


def test_a_process_killed_at_a_random_step_ends_bit_equal_when_started_again(config, tmp_path, run):
    assert run(arguments(config, tmp_path / "whole"))[0] == 0
    out, state = tmp_path / "killed", tmp_path / ".killed.state.safetensors"
    command = arguments(config, out, checkpoint_seconds=0)
    # so many steps that it cannot end before it is killed
    kill_at = random.Random(3).randint(1, 6)
    # sums depend on how many threads share them
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "sam_edge", *command], stdout=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 120
    while saved_step(state) < kill_at and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    reached = saved_step(state)
    assert kill_at <= reached < 8
    assert not out.exists()

    # neither the workers nor how often it is saved belong to what a run is
    code, result, err = run(arguments(config, out, workers=1))
    assert code == 0, err
    assert result["steps"] == 8
    killed, whole = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert killed.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in killed.items())
    assert not state.exists()


def test_training_changes_every_weight_and_writes_its_lineage(config, tmp_path, run):
    code, result, _ = run(arguments(config, tmp_path / "out", ema_decay=0, validate_every=4))
    assert code == 0
    model = load_checkpoint(tmp_path / "out")
    (step,) = model.config.lineage
    assert (step["step"], step["seed"], step["parent_sha256"]) == ("train", 0, None)
    assert step["settings"]["copy_paste"] == 0.5
    assert step["data"] == [{"name": "SyntheticScenes", "images": 22, "weight": 1.0}]
    assert [entry["step"] for entry in result["history"]] == list(range(1, 9))
    scored = [entry for entry in result["history"] if "score" in entry]
    assert [entry["step"] for entry in scored] == [4, 8]
    assert all(entry["score"] == (entry["box"] + entry["point"]) / 2 for entry in scored)
    assert result["best_score"] == max(entry["score"] for entry in scored)
    assert 0 <= result["data_wait_share"] < 1
    # fine-tuning goes on from there, and says from where
    again = ["train", str(tmp_path / "out"), *arguments(config, tmp_path / "fine", steps=2)[3:]]
    assert run(again)[0] == 0
    lineage = load_checkpoint(tmp_path / "fine").config.lineage
    assert len(lineage) == 2
    assert len(lineage[1]["parent_sha256"]) == 64


def test_what_was_trained_takes_every_kind_of_data_by_weight(config, tmp_path, run, tiny_slim, photo):
    from PIL import Image

    from sam_edge.data.rle import encode_mask

    folder = tmp_path / "photos=2"
    folder.mkdir()
    mask = photo[..., 0] > 100
    for number in range(8):
        Image.fromarray(photo).save(folder / f"{number}.png")
        entry = {"segmentation": encode_mask(mask), "bbox": [0, 0, 90, 50], "point_coords": [[3.0, 4.0]]}
        (folder / f"{number}.json").write_text(json.dumps({"annotations": [entry]}))
    args = arguments(config, tmp_path / "out", data=f"{folder}=0.5", steps=2, validate_every=0)
    code, _, _ = run([*args, "--data", "synthetic:10:3"])
    assert code == 0
    data = load_checkpoint(tmp_path / "out").config.lineage[0]["data"]
    assert [(entry["name"], entry["weight"]) for entry in data] == [("photos=2", 0.5), ("SyntheticScenes", 1.0)]


def test_weights_stand_behind_data_and_names_may_hold_their_sign(tmp_path):
    assert parse_data("synthetic:7:2") == ("synthetic:7:2", 1.0)
    assert parse_data("synthetic:7=0.25") == ("synthetic:7", 0.25)
    (tmp_path / "a=2").mkdir()
    assert parse_data(str(tmp_path / "a=2")) == (str(tmp_path / "a=2"), 1.0)
    assert parse_data(f"{tmp_path / 'a=2'}=3") == (str(tmp_path / "a=2"), 3.0)
    for bad in ("x=-1", "x=much", "x=nan", "x=inf", "x="):
        with pytest.raises(DataError, match="--data x="):
            parse_data(bad)


def test_a_config_is_read_from_json_and_toml_without_its_past(tiny_config, tmp_path):
    (tmp_path / "a.json").write_text(tiny_config.with_step({"step": "train"}).to_json())
    assert read_config(tmp_path / "a.json") == tiny_config
    (tmp_path / "a.toml").write_text(
        'arch = "vit"\nimage_size = 64\npatch_size = 8\n'
        + "".join(
            f"[[blocks]]\nembed = 32\nqk = 32\nv = 32\nmlp = 40\nheads = 2\nwindow = {window}\n" for window in (3, 0)
        )
        + "[decoder]\ndim = 32\nmlp = 48\nmask_channels = 8\niou_hidden = 24\n"
    )
    assert read_config(tmp_path / "a.toml") == tiny_config
    for name, text in (("b.json", "{"), ("b.toml", "= 3"), ("c.json", "[]"), ("d.json", '{"image_size": "big"}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError):
            read_config(tmp_path / name)


def test_a_part_may_learn_at_another_rate_and_the_lineage_says_so(config, tmp_path, run):
    plain = arguments(config, tmp_path / "out", steps=1, validate_every=0)
    code, _, err = run([*plain, "--rate", "mask_decoder.*=0.1"])
    assert code == 0, err
    settings = load_checkpoint(tmp_path / "out").config.lineage[-1]["settings"]
    assert [list(rate) for rate in settings["loop"]["rates"]] == [["mask_decoder.*", 0.1]]
    code, _, err = run([*plain, "--rate", "mask_decoder"])
    assert code == 2
    assert "PATTERN=FACTOR" in err


def test_a_teacher_is_learned_from_beside_the_labels_and_named_in_the_lineage(config, tmp_path, run, tiny_slim):
    teacher = save_checkpoint(tiny_slim, tmp_path / "teacher")
    few = {"steps": 2, "validate_every": 2, "interactive_share": 1.0}
    losses = {}
    for name, more in (("alone", []), ("taught", ["--teacher", str(teacher), "--beta", "0.5"])):
        code, result, err = run([*arguments(config, tmp_path / name, **few), *more])
        assert code == 0, err
        losses[name] = result["history"][0]
    # the same first step, to which the teacher's losses are added
    assert losses["taught"]["mask"] == pytest.approx(losses["alone"]["mask"], rel=1e-4)
    assert losses["taught"]["teacher"] > 0
    assert losses["taught"]["loss"] == pytest.approx(losses["alone"]["loss"] + losses["taught"]["teacher"], rel=1e-4)
    alone, taught = (load_checkpoint(tmp_path / name).config.lineage[-1] for name in ("alone", "taught"))
    assert "teacher" not in alone["settings"]
    wanted = {"sha256": weights_sha256(tiny_slim), "alpha": 1.0, "beta": 0.5, "gamma": 0.01, "labels": 0.0}
    assert taught["settings"]["teacher"] == wanted
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "taught")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_teacher_of_another_width_or_on_windows_is_refused(
    config, tmp_path, run, tiny_slim, tiny_vit_config, make_sam
):
    narrow = replace(tiny_vit_config.decoder, dim=16)
    other = save_checkpoint(make_sam(tiny_vit_config.replace(decoder=narrow)), tmp_path / "other")
    code, _, err = run([*arguments(config, tmp_path / "out"), "--teacher", str(other)])
    assert code == 1
    assert "16 channels and the model's 32" in " ".join(err.split())
    same = save_checkpoint(tiny_slim, tmp_path / "same")
    code, _, err = run([*arguments(config, tmp_path / "out", window=32), "--teacher", str(same)])
    assert code == 1
    assert "leave --window out" in " ".join(err.split())


BAD = {
    "model and config": (["nano"], {}, "not both"),
    "weight": ([], {"data": "synthetic:30=-1"}, "cannot be negative"),
    "all weights 0": ([], {"data": "synthetic:30=0"}, "weight 0"),
    "no data": ([], {"data": "nowhere"}, "nowhere"),
    "empty folder": ([], {"data": "{empty}"}, "no images"),
    "one picture and no train split": ([], {"data": "synthetic:1:0", "split": "val"}, "split val"),
    "steps": ([], {"steps": 0}, "steps >= 1"),
    "batch": ([], {"batch_size": 0}, "batch_size"),
    "rate": ([], {"learning_rate": 0}, "learning_rate"),
    "zoom": ([], {"min_zoom": 4}, "min_zoom <= max_zoom"),
    "ellipse": ([], {"largest_ellipse": 1}, "largest_ellipse must be at least 4"),
    "share": ([], {"copy_paste": 1.5}, "copy_paste"),
    "rounds": ([], {"rounds": 0}, "rounds"),
    "seed": ([], {"seed": 1 << 30}, "seed"),
    "ema": ([], {"ema_decay": 1}, "ema_decay"),
    "diverged": ([], {"learning_rate": 1e30, "clip_norm": 0, "optimizer": "adam"}, "lower --learning-rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_nonsense_is_one_line_and_writes_no_model(config, tmp_path, run, case):
    extra, changes, hint = BAD[case]
    (tmp_path / "empty").mkdir()
    changes = {name: str(value).format(empty=tmp_path / "empty") for name, value in changes.items()}
    code, result, err = run([*arguments(config, tmp_path / "out", **changes), *extra])
    assert code == 1
    assert result is None
    (line,) = [line for line in err.splitlines() if line.startswith("sam-edge: ")]
    assert hint in line
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_neither_model_nor_config_and_foreign_folders_are_refused_before_any_step(config, tmp_path, run):
    args = arguments(config, tmp_path / "out")
    code, _, err = run([args[0], *args[3:]])
    assert code == 1
    assert "give a MODEL to fine-tune or --config FILE" in " ".join(err.split())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.doc").write_text("mine")
    code, _, err = run(arguments(config, tmp_path / "mine"))
    assert code == 1
    assert "choose another --out" in " ".join(err.split())
    assert not list(tmp_path.glob(".mine*"))


def test_the_state_of_another_run_is_refused(config, tmp_path, run, monkeypatch):
    state = tmp_path / ".out.state.safetensors"
    args = arguments(config, tmp_path / "out", learning_rate=1e-3, checkpoint_seconds=0)
    monkeypatch.setattr("sam_edge.commands.workshop.train.save_checkpoint", _killed)
    with pytest.raises(KeyError):
        run(args)
    monkeypatch.undo()
    kept = state.read_bytes()
    for changes in ({"learning_rate": 2e-3}, {"seed": 1}, {"data": "synthetic:31"}, {"copy_paste": 0.4}):
        code, _, err = run(arguments(config, tmp_path / "out", **changes))
        assert code == 1
        assert "choose another --out or delete it" in " ".join(err.split())
    assert state.read_bytes() == kept


def _killed(*args: object, **kwargs: object) -> None:
    raise KeyError


def test_quantized_models_are_refused(tmp_path, run, tiny_slim, config, monkeypatch):
    tiny_slim.config = tiny_slim.config.replace(quantization={"layer": {"bits": 8}})
    monkeypatch.setattr("sam_edge.commands.workshop.train.load_model", lambda spec: tiny_slim)
    code, _, err = run(["train", "integers", *arguments(config, tmp_path / "out")[3:]])
    assert code == 1
    assert "integers is quantized" in " ".join(err.split())


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one_for_the_same_global_batch(config, tmp_path, run):
    code, alone, _ = run(arguments(config, tmp_path / "alone", batch_size=4, accumulate=1))
    assert code == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "sam_edge", *arguments(config, tmp_path / "both", batch_size=2)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    # one of the two speaks
    together = json.loads(done.stdout)
    curves = [[(e["step"], e["loss"], e["mask"], e["iou"]) for e in r["history"]] for r in (alone, together)]
    assert len(curves[0]) == 8
    for one, two in zip(*curves, strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    assert together["best_score"] == pytest.approx(alone["best_score"], abs=0.02)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "both")]
    rate = max(learning_rate_at(step, _loop()) for step in range(8))
    # sums in another order: far less than one step of the largest rate
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < rate
    assert not list(tmp_path.glob(".both*"))


def _loop():
    from sam_edge.training.loop import LoopOptions

    return LoopOptions(steps=8, learning_rate=1e-3, warmup_steps=2)


def test_a_frozen_encoder_stays_while_the_decoder_learns_ellipses_on_windows(config, tmp_path, run):
    changes = {"window": 32, "ellipses": 1.0, "box_share": 1.0, "validate_every": 0}
    first, second = (tmp_path / name for name in ("first", "second"))
    assert run([*arguments(config, first, steps=1, ema_decay=0, **changes), "--freeze", "image_encoder.*"])[0] == 0
    assert run([*arguments(config, second, steps=4, ema_decay=0, **changes), "--freeze", "image_encoder.*"])[0] == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert not any(name.startswith("image_encoder") for name in moved)
    assert any(name.startswith("mask_decoder") for name in moved)


def test_a_window_that_is_no_part_of_the_canvas_is_refused(config, tmp_path, run):
    code, _, err = run(arguments(config, tmp_path / "out", window=36))
    assert code == 1
    assert "a multiple of 8 px" in err.splitlines()[-1]


def test_a_classifiers_features_leave_nothing_but_their_name_in_what_was_trained(config, tmp_path, run):
    import timm
    from safetensors.torch import save_file

    weights = tmp_path / "classifier.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), weights)
    features = f"mobilenetv3_small_050={weights}"
    code, result, err = run(arguments(config, tmp_path / "out", steps=2, features=features, feature_weight=0.5))
    assert code == 0, err
    assert {"features", "mask"} <= result["history"][0].keys()
    # strictly: no layer is left over
    model = load_checkpoint(tmp_path / "out")
    recorded = model.config.lineage[0]["settings"]["features"]
    assert (recorded["classifier"], recorded["weight"]) == ("mobilenetv3_small_050", 0.5)
    assert len(recorded["sha256"]) == 64

    args = [*arguments(config, tmp_path / "other", features=features), "--freeze", "image_encoder.*"]
    code, _, err = run(args)
    assert code == 1
    assert "leave out either them or --freeze" in err
