"""The recipe of nano, on a tiny model: its stages follow each other and are not run twice."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from sam_edge.models.checkpoint import load_checkpoint, weights_sha256
from sam_edge.models.timm_weights import open_classifier
from sam_edge.segment.known import NANO_CONFIG
from sam_edge.training import nano

TRAINED = ("small", "large")


@pytest.fixture
def backbone(monkeypatch, timm_config, tmp_path) -> str:
    """Two short stages, the first behind a backbone that stays; and weights of that."""
    stages = {
        "small": nano._stage(0, 2, 1e-3, batch_size=2, window=32, freeze=(nano.BACKBONE,)),
        "large": nano._stage(1, 2, 1e-3, batch_size=2),
    }
    monkeypatch.setattr(nano, "STAGES", stages)
    monkeypatch.setattr(nano, "MIX", {nano.SYNTHETIC: 1.0})
    monkeypatch.setattr(nano, "NANO_CONFIG", timm_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = timm.create_model(timm_config.backbone.name)
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    return f"{timm_config.backbone.name}={tmp_path / 'weights.safetensors'}"


def test_stages_follow_each_other_and_are_not_run_twice(tmp_path, backbone):
    model = nano.train_nano(tmp_path, backbone, tmp_path / "runs", "cpu")
    small, large = (load_checkpoint(tmp_path / "runs" / name) for name in TRAINED)
    assert weights_sha256(model) == weights_sha256(large)
    steps = large.config.lineage
    assert [step["seed"] for step in steps] == [0, 1]
    assert steps[1]["parent_sha256"] == weights_sha256(small)
    start = timm.create_model(backbone.partition("=")[0])
    start.load_state_dict(open_classifier(backbone).state_dict())
    assert torch.equal(small.image_encoder.backbone.conv_stem.weight, start.conv_stem.weight)
    assert not torch.equal(large.image_encoder.backbone.conv_stem.weight, start.conv_stem.weight)
    times = [(tmp_path / "runs" / name / "model.safetensors").stat().st_mtime_ns for name in TRAINED]
    again = nano.train_nano(tmp_path, backbone, tmp_path / "runs", "cpu")
    assert weights_sha256(again) == weights_sha256(model)
    assert [(tmp_path / "runs" / name / "model.safetensors").stat().st_mtime_ns for name in TRAINED] == times


def test_the_recipe_trains_what_it_says():
    assert not {source for source in nano.MIX if source.startswith("bsds")}, "for evaluation alone"
    assert NANO_CONFIG.backbone is not None
    assert NANO_CONFIG.grid == 64
