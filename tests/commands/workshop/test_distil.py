"""`sam-edge embed` and `sam-edge compress --method tinysam` from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.segment.config import StageConfig, Thresholds

IMAGES = "synthetic:8:3"
QUICK = ("--prompts", 3, "--max-rounds", 1, "--batch-size", 2, "--epochs", 1, "--workers", 0, "--validations", 1)


@pytest.fixture
def teacher(tiny_slim, tmp_path) -> Path:
    tiny_slim.config = tiny_slim.config.replace(thresholds=Thresholds(-9.0, -1.0))
    return save_checkpoint(tiny_slim, tmp_path / "teacher")


@pytest.fixture
def student(tiny_vit_config, make_sam, tmp_path) -> Path:
    stages = (StageConfig(8, 1, 0, 0, 1), StageConfig(16, 1, 2, 4, 2))
    return save_checkpoint(make_sam(tiny_vit_config.replace(patch_size=8, stages=stages)), tmp_path / "student")


def test_embed_states_its_error_and_continues_where_it_was(sam_edge, teacher, tmp_path, monkeypatch):
    command = ("embed", teacher, "--images", IMAGES, "--out", tmp_path / "store", "--shard-views", 2, "--json")
    command = (*command, "--mask-points", 2)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, _ = sam_edge(*command)
    result = json.loads(out)
    assert code == 0
    assert (result["shards"], result["written"], result["complete"]) == (4, 2, False)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    result = json.loads(sam_edge(*command)[1])
    assert (result["written"], result["complete"]) == (2, True)
    assert 0 < result["squared_error"] < 1e-3
    assert result["stored_bytes"] > 8 * 32 * 8 * 8
    assert json.loads(sam_edge(*command)[1])["written"] == 0


def test_a_student_is_distilled_from_stored_embeddings(sam_edge, teacher, student, tmp_path):
    store = tmp_path / "store"
    assert sam_edge("embed", teacher, "--images", IMAGES, "--out", store, "--views", 2, "--mask-points", 0)[0] == 0
    out = tmp_path / "distilled"
    command = ("compress", teacher, "--method", "tinysam", "--student", student, "--images", IMAGES, "--out", out)
    code, text, err = sam_edge(*command, "--embeddings", store, *QUICK, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert result["labels"] == "data"
    assert result["steps"] == result["best"]["step"]
    assert {"miou_point", "miou_box", "agreement"} <= result["best"].keys()
    step = load_checkpoint(out).config.lineage[-1]
    assert step["settings"]["method"] == "tinysam"
    assert step["settings"]["embeddings"]["squared_error"] > 0
    assert store.is_dir()
    assert not list(tmp_path.glob(".distilled*"))
    # the same teacher's weights are asked for
    other = save_checkpoint(load_checkpoint(student), tmp_path / "other")
    code, _, err = sam_edge("compress", other, *command[2:], "--embeddings", store, *QUICK)
    assert code == 1
    assert "holds another teacher's embeddings: embed with this one" in err


def test_without_labels_the_teachers_masks_are_learnt(sam_edge, teacher, student, tmp_path):
    out = tmp_path / "distilled"
    command = ("compress", teacher, "--method", "tinysam", "--student", student, "--images", IMAGES, "--out", out)
    code, text, err = sam_edge(*command, "--labels", "teacher", *QUICK, "--json")
    assert code == 0, err
    assert json.loads(text)["labels"] == "teacher"
    assert not list(tmp_path.glob(".distilled*")), "embeddings written on the way are gone"


def test_the_method_needs_a_student(sam_edge, teacher, tmp_path):
    command = ("compress", teacher, "--method", "tinysam", "--images", IMAGES, "--out", tmp_path / "out")
    code, _, err = sam_edge(*command)
    assert code == 2
    assert "needs --student" in err


@pytest.mark.slow
def test_two_processes_share_embedding_and_steps(teacher, student, tmp_path):
    out = tmp_path / "distilled"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29641"]
    command += ["-m", "sam_edge", "compress", teacher, "--method", "tinysam", "--student", student, "--images", IMAGES]
    command += ["--out", out, *QUICK, "--device", "cpu", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 1
    assert load_checkpoint(out).config.lineage[-1]["step"] == "compress"
