"""The recipe of nano, on a tiny model: its stages follow each other, are averaged, and are not run twice."""

import pytest
import torch

from sam_edge.models.checkpoint import load_checkpoint, weights_sha256
from sam_edge.models.resize import resized
from sam_edge.training import nano

TRAINED = ("small", "large", "beside")


@pytest.fixture
def recipe(monkeypatch, tiny_config):
    """A short stage, two from there on a larger canvas where clicks are drawn, and the average of all."""
    stages = {name: nano._stage(seed, 2, 1e-3, 0.5, batch_size=2) for seed, name in enumerate(TRAINED)}
    monkeypatch.setattr(nano, "STAGES", stages | {"nano": {"small": 0.25, "large": 0.5, "beside": 0.25}})
    monkeypatch.setattr(nano, "STARTS", {"beside": "small"})
    monkeypatch.setattr(nano, "CANVASES", {"small": 64, "large": 128})
    monkeypatch.setattr(nano, "CLICKS_DRAWN", "large")
    monkeypatch.setattr(nano, "WEIGHTS", {nano.SYNTHETIC: 1.0})
    monkeypatch.setattr(nano, "NANO_CONFIG", tiny_config.replace(arch="slim_vit"))


@pytest.mark.usefixtures("recipe")
def test_the_recipes_last_model_is_the_average_of_its_stages(tmp_path):
    model = nano.train_nano(tmp_path, tmp_path, "cpu")
    small, large, beside = (load_checkpoint(tmp_path / name) for name in TRAINED)
    parts = (small, large, beside, model)
    assert [part.config.image_size for part in parts] == [64, 128, 128, 128]
    assert [part.config.decoder.draws_points for part in parts] == [False, True, True, True]
    assert beside.config.lineage[-1]["parent_sha256"] == weights_sha256(resized(small, 128, same_pixels=True))
    states = [part.state_dict() for part in (resized(small, 128, same_pixels=True), large, beside)]
    changed = 0
    for name, weight in model.state_dict().items():
        grown, later, other = (state[name] for state in states)
        torch.testing.assert_close(weight, 0.25 * grown + 0.5 * later + 0.25 * other, rtol=0, atol=1e-6)
        changed += not torch.equal(later, other)
    assert changed > 10
    *trained, average = model.config.lineage
    assert trained == [part.config.lineage[-1] for part in (small, large, beside)]
    assert average["parents_sha256"]["beside"] == weights_sha256(beside)
    assert average["settings"]["shares"] == {"small": 0.25, "large": 0.5, "beside": 0.25}


@pytest.mark.usefixtures("recipe")
def test_a_recipe_started_again_goes_on_where_it_stopped(tmp_path, monkeypatch):
    with monkeypatch.context() as stopped:
        stopped.setattr(nano, "averaged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nano.train_nano(tmp_path, tmp_path, "cpu")
    weights = [(tmp_path / name / "model.safetensors").stat().st_mtime_ns for name in TRAINED]
    nano.train_nano(tmp_path, tmp_path, "cpu")
    assert [(tmp_path / name / "model.safetensors").stat().st_mtime_ns for name in TRAINED] == weights
    assert (tmp_path / "nano" / "model.safetensors").exists()


def test_the_recipe_ends_in_the_model_that_ships():
    last = list(nano.STAGES)[-1]
    assert last == "nano"
    assert list(nano.CANVASES.values())[-1] == nano.NANO_CONFIG.image_size
    assert nano.NANO_CONFIG.decoder.draws_points
    assert {nano.CLICKS_DRAWN, *nano.CANVASES, *nano.MIXES, *nano.STARTS} <= nano.STAGES.keys()
    earlier: set[str] = set()
    for name, stage in nano.STAGES.items():
        assert nano.STARTS.get(name) in {None, *earlier}
        if not isinstance(stage, nano.TrainOptions):
            assert stage.keys() <= earlier
            assert sum(stage.values()) == pytest.approx(1)
        earlier.add(name)
