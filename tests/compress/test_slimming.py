"""The chain of stages: what each leaves, what a kill costs, and that processes agree."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from sam_edge.compress import slimming
from sam_edge.compress.distil import DistilOptions
from sam_edge.compress.importance import ImportanceOptions
from sam_edge.compress.labels import LabelledLoss
from sam_edge.compress.slimming import Slimming, SlimOptions
from sam_edge.compress.widths import PruneOptions
from sam_edge.data import open_images
from sam_edge.errors import CompressionError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.cost import cost
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.training import loop

STAGES = ["1-embedding-pruned", "2-bottleneck-aligned", "3-bottleneck-pruned", "4-embedding-aligned"]


def options(epochs=4, schedule="alternate", importance="disturbed-taylor", **prune):
    return SlimOptions(
        schedule,
        PruneOptions(0.5, importance, **prune),
        ImportanceOptions(images=4),
        DistilOptions(epochs=epochs, workers=0, learning_rate=2e-3),
    )


@pytest.fixture
def pictures():
    return open_images("synthetic:12:2")


def slim(model, pictures, settings, stages=None, **more):
    run = Slimming(copy.deepcopy(model), pictures, settings, stages, **more)
    run.run()
    return run


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_alternate_slimming_leaves_a_checkpoint_of_each_stage(tiny_slim, pictures, tmp_path):
    run = slim(tiny_slim, pictures, options(ranking="local"), tmp_path)
    assert [record["stage"] for record in run.records] == STAGES
    folders = sorted(folder for folder in tmp_path.iterdir() if folder.is_dir())
    assert [folder.name[:-9] for folder in folders] == STAGES
    blocks = [load_checkpoint(folder).config.blocks[0] for folder in folders]
    widths = [(block.embed, block.qk, block.v, block.mlp) for block in blocks]
    assert widths == [(16, 32, 32, 40)] * 2 + [(16, 16, 16, 20)] * 2
    weights = [load_checkpoint(folder).state_dict() for folder in folders]
    assert not same(weights[0], weights[1])
    assert same(weights[3], run.model.state_dict())
    # no states and no embeddings of the teacher are left behind
    assert sorted(tmp_path.iterdir()) == folders


def test_a_second_run_takes_every_stage_from_the_first(tiny_slim, pictures, tmp_path, monkeypatch):
    first = slim(tiny_slim, pictures, options(), tmp_path)
    monkeypatch.setattr(slimming, "distil", lambda *a, **k: pytest.fail("aligned twice"))
    monkeypatch.setattr(slimming, "prune_encoder", lambda *a, **k: pytest.fail("pruned twice"))
    second = slim(tiny_slim, pictures, options(), tmp_path)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert second.records == first.records
    assert second.model.config.lineage == first.model.config.lineage


def test_runs_that_begin_alike_share_their_beginning(tiny_slim, pictures, tmp_path):
    for normalization in ("gaussian", "max"):
        slim(tiny_slim, pictures, options(normalization=normalization), tmp_path)
    names = [folder.name[:-9] for folder in tmp_path.iterdir()]
    # how blocks are ranked means nothing to the one group of the embedding
    assert sorted(names) == sorted([*STAGES, *STAGES[2:]])


def test_a_run_killed_in_any_stage_ends_with_the_same_weights(tiny_slim, pictures, tmp_path, monkeypatch):
    whole = slim(tiny_slim, pictures, options(), tmp_path / "a")
    # every step is far enough from the last save
    monkeypatch.setattr(loop, "perf_counter", iter(range(0, 10**9, 1000)).__next__)

    class Killed(Exception):
        pass

    calls = []

    def dying(done, total, text):
        calls.append(text)
        # each run gets a few reports further than the one before
        if len(calls) == 5:
            raise Killed

    kills = 0
    while kills < 20:
        calls.clear()
        try:
            resumed = slim(tiny_slim, pictures, options(), tmp_path / "b", on_progress=dying)
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert same(whole.model.state_dict(), resumed.model.state_dict())


def test_half_of_the_epochs_go_to_each_half_and_all_to_the_only_one(tiny_slim, pictures, make_sam, tiny_vit_config):
    steps = {r["stage"]: r.get("steps") for r in slim(tiny_slim, pictures, options(5)).records}
    per_epoch = steps["4-embedding-aligned"] // 2
    assert steps["2-bottleneck-aligned"] == 3 * per_epoch
    one = slim(tiny_slim, pictures, options(5, "one-step")).records
    assert [r["stage"] for r in one] == ["pruned", "distilled"]
    assert one[1]["steps"] == 5 * per_epoch
    tiny = slim(make_sam(tiny_vit_config), pictures, options(2)).records
    assert [r["stage"] for r in tiny] == ["1-bottleneck-pruned", "2-embedding-aligned"]
    assert tiny[1]["steps"] == 2 * per_epoch


def test_a_backbone_of_timms_goes_through_the_same_stages(make_sam, timm_config, pictures, tmp_path):
    model = make_sam(timm_config)
    run = slim(model, pictures, options(2), tmp_path)
    assert [record["stage"] for record in run.records] == STAGES
    costs = [cost(model.config).encoder_parameters]
    weights = []
    for folder in sorted(tmp_path.iterdir()):
        stage = load_checkpoint(folder)
        costs.append(cost(stage.config).encoder_parameters)
        weights.append(stage.state_dict())
    assert costs[0] > costs[1] == costs[2] > costs[3] == costs[4]
    assert not same(weights[0], weights[1])
    assert not same(weights[2], weights[3])
    # how the stages' widths are ranked is told of here: there are several
    assert load_checkpoint(sorted(tmp_path.iterdir())[0]).config.lineage[-1]["settings"]["ranking"] == "global"


def test_without_epochs_the_stages_only_prune(tiny_slim, pictures):
    run = slim(tiny_slim, pictures, options(0, ranking="local"))
    assert [record["stage"] for record in run.records] == [STAGES[0], STAGES[2]]
    block = run.model.config.blocks[1]
    assert (block.embed, block.qk, block.v, block.mlp) == (16, 16, 16, 20)


def test_the_papers_epochs_are_the_defaults():
    at = {ratio: replace(options(None), prune=PruneOptions(ratio)).epochs for ratio in (0.3, 0.5, 0.77)}
    assert at == {0.3: 40, 0.5: 40, 0.77: 80}


@pytest.mark.parametrize("importance", ["taylor", "hessian", "magnitude", "random"])
def test_every_importance_prunes(tiny_slim, importance):
    scenes = SyntheticScenes(12, 2)
    run = slim(
        tiny_slim, open_images("synthetic:12:2"), options(0, importance=importance), label_loss=LabelledLoss(scenes)
    )
    assert run.model.config.blocks[0].embed == 16


def test_label_importance_without_labels_is_refused(tiny_slim, pictures):
    with pytest.raises(CompressionError, match="needs pictures with masks"):
        slim(tiny_slim, pictures, options(importance="taylor"))


def test_what_cannot_be_pruned_is_refused_before_any_work(tiny_slim, pictures, tmp_path):
    with pytest.raises(CompressionError, match="leaves nothing"):
        slim(tiny_slim, pictures, options(round_to=64), tmp_path)
    assert not list(tmp_path.iterdir())


def test_validation_by_labels_decides_when_there_are_any(tiny_slim, pictures):
    scores = iter(range(100))
    run = slim(tiny_slim, pictures, options(2, "one-step"), validate=lambda model: float(next(scores)))
    assert run.records[1]["score"] == 1.0


def command(model, out, *more):
    settings = ("--images", "synthetic:12:2", "--epochs", "6", "--importance-images", "4", "--workers", "0", "--json")
    return ["-m", "sam_edge", "compress", str(model), "--out", str(out), *settings, *more]


SCRIPT = """
import sys
from pathlib import Path
import torch
from sam_edge.compress.distil import DistilOptions
from sam_edge.compress.importance import ImportanceOptions
from sam_edge.compress.slimming import Slimming, SlimOptions
from sam_edge.data import open_images
from sam_edge.models.checkpoint import load_checkpoint
torch.set_num_threads(1)
options = SlimOptions(importance=ImportanceOptions(4), distil=DistilOptions(12, workers=0))
Slimming(load_checkpoint(sys.argv[1]), open_images("synthetic:12:2"), options, Path(sys.argv[2])).run()
"""


@pytest.mark.slow
def test_a_process_killed_from_outside_continues(tiny_slim, tmp_path):
    model = save_checkpoint(tiny_slim, tmp_path / "model")
    killed = subprocess.Popen([sys.executable, "-c", SCRIPT, model, tmp_path / "a"])
    for _ in range(1200):
        # in the middle of an aligning stage
        if list((tmp_path / "a").glob(f"{STAGES[0]}-*")):
            break
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    left = {folder.name for folder in (tmp_path / "a").iterdir() if not folder.name.startswith(".")}
    assert left
    for folder in ("a", "b"):
        subprocess.run([sys.executable, "-c", SCRIPT, model, tmp_path / folder], check=True)
    resumed, uninterrupted = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [folder.name for folder in resumed] == [folder.name for folder in uninterrupted]
    assert left < {folder.name for folder in resumed}
    assert same(load_checkpoint(resumed[-1]).state_dict(), load_checkpoint(uninterrupted[-1]).state_dict())


@pytest.mark.slow
def test_two_processes_agree_with_one_in_what_they_keep_and_about_how_close_they_come(tiny_slim, tmp_path):
    model = save_checkpoint(tiny_slim, tmp_path / "model")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def result(name, launcher, *more):
        done = subprocess.run(
            [sys.executable, *launcher, *command(model, tmp_path / name, *more)],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        # one process alone reports
        return json.loads(done.stdout)

    two = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611")
    alone = result("one", (), "--batch-size", "4")
    shared = result("two", two, "--batch-size", "2")
    assert [stage.get("steps") for stage in shared["stages"]] == [stage.get("steps") for stage in alone["stages"]]
    # batches of 2 x 2 are the batches of 4: only the order of sums differs
    assert shared["embedding_error"] == pytest.approx(alone["embedding_error"], rel=0.05)
    assert load_checkpoint(tmp_path / "two").config.blocks == load_checkpoint(tmp_path / "one").config.blocks
