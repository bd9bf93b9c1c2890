"""The ablation as a whole, on a model small enough to be compressed ten times."""

import json
import sys

import pytest

from sam_edge import ablation
from sam_edge.ablation import Ablation, AblationOptions
from sam_edge.bench.slimming import Variant
from sam_edge.models.checkpoint import save_checkpoint


@pytest.fixture
def arguments(tiny_slim, tmp_path):
    model = save_checkpoint(tiny_slim, tmp_path / "model")
    options = ("--epochs", 2, "--limit", 8, "--eval-limit", 2, "--importance-images", 2, "--seed", 0, "--threads", 1)
    data = ("--images", "synthetic:12:1", "--data", "synthetic:24:2")
    return [str(model), *data, "--out", str(tmp_path / "out"), *map(str, options)]


def test_tables_are_written_and_a_second_run_compresses_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", *arguments, "--table", "4"])
    ablation.main()
    first = json.loads((tmp_path / "out" / "ablation.json").read_text())
    rows = first["tables"]["4"]
    assert rows[0]["label"] == "step 1, final embeddings"
    assert all(0 <= row["mean"] <= 1 for row in rows)
    stages = sorted(folder.name for folder in (tmp_path / "out" / "stages").iterdir())
    # both rows of step 2 and the aligned one of step 1 begin with the same two stages
    assert [sum(name.startswith(f"{number}-") for name in stages) for number in (1, 2, 3, 4)] == [1, 2, 1, 2]
    monkeypatch.setattr("sam_edge.compress.slimming.distil", lambda *a, **k: pytest.fail("trained again"))
    ablation.main()
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == first
    assert "Table 4" in capsys.readouterr().out


def test_less_data_takes_as_many_steps_and_scratch_keeps_no_weight(tiny_slim, tmp_path):
    model = save_checkpoint(tiny_slim, tmp_path / "model")
    options = AblationOptions(epochs=2, limit=6, eval_limit=1, importance_images=2)
    runner = Ablation(str(model), "synthetic:12:1", "synthetic:24:2", tmp_path / "out", options, "cpu")
    whole, epochs = runner._pictures(Variant(), 0)
    half, twice = runner._pictures(Variant(data=0.5), 0)
    assert (epochs, twice) == (2, 4)
    assert len(whole.names) - len(half.names) == 3
    assert 0 <= runner.measure(Variant(0.5, "one-step", "random", "local", scratch=True), 0) <= 1
