"""The recipe of nano, on a tiny model: its stages follow each other, are averaged, and are not run twice."""

import pytest
import torch

from sam_edge.models.checkpoint import load_checkpoint
from sam_edge.models.resize import resized
from sam_edge.training import nano


@pytest.fixture
def recipe(monkeypatch, tiny_config):
    """Two short stages, the second on a larger canvas, and the average of both."""
    stages = {name: nano._stage(seed, 2, 1e-3, 0.5, batch_size=2) for seed, name in enumerate(("small", "large"))}
    monkeypatch.setattr(nano, "STAGES", stages | {"nano": {"small": 0.25, "large": 0.75}})
    monkeypatch.setattr(nano, "CANVASES", {"small": 64, "large": 128})
    monkeypatch.setattr(nano, "WEIGHTS", {nano.SYNTHETIC: 1.0})
    monkeypatch.setattr(nano, "NANO_CONFIG", tiny_config.replace(arch="slim_vit"))


@pytest.mark.usefixtures("recipe")
def test_the_recipes_last_model_is_the_average_of_its_stages(tmp_path):
    model = nano.train_nano(tmp_path, tmp_path, "cpu")
    small, large = (load_checkpoint(tmp_path / name) for name in ("small", "large"))
    assert (small.config.image_size, large.config.image_size, model.config.image_size) == (64, 128, 128)
    grown, later = resized(small, 128, same_pixels=True).state_dict(), large.state_dict()
    changed = 0
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, 0.25 * grown[name] + 0.75 * later[name], rtol=0, atol=1e-6)
        changed += not torch.equal(grown[name], later[name])
    assert changed > 10
    assert [step["step"] for step in model.config.lineage] == ["train", "train", "average"]
    assert model.config.lineage[-1]["settings"]["shares"] == {"small": 0.25, "large": 0.75}


@pytest.mark.usefixtures("recipe")
def test_a_recipe_started_again_goes_on_where_it_stopped(tmp_path, monkeypatch):
    with monkeypatch.context() as stopped:
        stopped.setattr(nano, "averaged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nano.train_nano(tmp_path, tmp_path, "cpu")
    weights = [(tmp_path / name / "model.safetensors").stat().st_mtime_ns for name in ("small", "large")]
    nano.train_nano(tmp_path, tmp_path, "cpu")
    assert [(tmp_path / name / "model.safetensors").stat().st_mtime_ns for name in ("small", "large")] == weights
    assert (tmp_path / "nano" / "model.safetensors").exists()


def test_the_recipe_ends_in_the_model_that_ships():
    last = list(nano.STAGES)[-1]
    assert last == "nano"
    assert list(nano.CANVASES.values())[-1] == nano.NANO_CONFIG.image_size
    earlier: set[str] = set()
    for name, stage in nano.STAGES.items():
        if not isinstance(stage, nano.TrainOptions):
            assert stage.keys() <= earlier
            assert sum(stage.values()) == pytest.approx(1)
        earlier.add(name)
