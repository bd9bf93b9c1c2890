"""The ablation as a whole, on a model small enough to be compressed ten times."""

import json

import pytest

from sam_edge.compress import slimming
from sam_edge.data import is_val
from sam_edge.data.joined import open_joined
from sam_edge.errors import SamEdgeError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.studies import measuring
from sam_edge.studies import slimming as study
from sam_edge.studies.slimming import Ablation, AblationOptions, drawn, held_out
from sam_edge.studies.slimming_tables import Variant

DATA = ["synthetic:12:1", "synthetic:24:2"]


@pytest.fixture
def arguments(tiny_slim, tmp_path):
    model = save_checkpoint(tiny_slim, tmp_path / "model")
    options = ("--epochs", 2, "--limit", 8, "--eval-limit", 2, "--importance-images", 2, "--seed", 0, "--workers", 0)
    data = [part for spec in DATA for part in ("--data", spec)]
    return [str(model), *data, "--out", str(tmp_path / "out"), *map(str, options)]


def test_tables_are_written_and_a_second_run_compresses_nothing(arguments, tmp_path, monkeypatch, capsys):
    study.main([*arguments, "--table", "4"])
    first = json.loads((tmp_path / "out" / "ablation.json").read_text())
    rows = first["tables"]["4"]
    assert rows[0]["label"] == "step 1, final embeddings"
    assert first["steps"] == 4
    assert set(rows[0]["scores"]) == set(first["unpruned"])
    assert {"point", "box", "synthetic-12-1 point", "synthetic-24-2 box"} <= set(first["unpruned"])
    stages = sorted(folder.name for folder in (tmp_path / "out" / "stages").iterdir())
    # both rows of step 2 and the aligned one of step 1 begin with the same two stages
    assert [sum(name.startswith(f"{number}-") for name in stages) for number in (1, 2, 3, 4)] == [1, 2, 1, 2]
    monkeypatch.setattr(measuring, "evaluate_prompts", lambda *a, **k: pytest.fail("measured again"))
    study.main([*arguments, "--table", "4"])
    again = json.loads((tmp_path / "out" / "ablation.json").read_text())
    # but for its date
    assert again.pop("provenance")["data"] == first.pop("provenance")["data"]
    assert again == first
    assert [one["mine"] for one in first["compared"]] == [
        "step 1, + bottleneck features",
        "step 2, + embedding features",
    ]
    assert all(row["sizes"]["parameters"] < 1e6 for row in first["tables"]["4"])
    assert "Table 4" in capsys.readouterr().out
    with pytest.raises(SamEdgeError, match="other settings"):
        study.main([*arguments, "--table", "4", "--learning-rate", "1e-3"])


def test_chosen_rows_share_importances_and_teacher_over_ratios(arguments, tmp_path, monkeypatch):
    taken, encoded = [], []
    once = slimming.accumulated_saliency
    monkeypatch.setattr(slimming, "accumulated_saliency", lambda *a, **k: taken.append(1) or once(*a, **k))
    kept = slimming.open_teacher
    monkeypatch.setattr(slimming, "open_teacher", lambda *a: encoded.append(kept(*a)) or encoded[-1])
    study.main([*arguments, "--table", "2", "--row", "SlimSAM", "--row", "scratch"])
    rows = json.loads((tmp_path / "out" / "ablation.json").read_text())["tables"]["2"]
    assert [row["label"] for row in rows] == [
        f"{r} {name}" for r in ("50%", "77%") for name in ("scratch distillation", "SlimSAM")
    ]
    # the embedding's once, the bottleneck's of each pruned embedding
    assert len(taken) == 3
    # four batches see all views; the other runs read what the first has kept
    assert [teacher.passes for teacher in encoded][1:] == [0, 0, 0]


def test_less_data_takes_as_many_steps_and_scratch_keeps_no_weight(tiny_slim, tmp_path):
    model = save_checkpoint(tiny_slim, tmp_path / "model")
    options = AblationOptions(epochs=2, limit=6, eval_limit=1, importance_images=2, workers=0)
    runner = Ablation(str(model), open_joined(DATA), tmp_path / "out", options, "cpu")
    whole, epochs = runner._pictures(Variant(), 0)
    half, twice = runner._pictures(Variant(data=0.5), 0)
    assert (epochs, twice) == (2, 4)
    assert len(whole.names) - len(half.names) == 3
    scores = runner.measure(Variant(0.5, "one-step", "random", "local", scratch=True), 0)
    assert all(0 <= value <= 1 for value in scores.values())
    pruned, anew = (
        slimming.load_checkpoint(next((tmp_path / "out" / "stages").glob(f"{name}-*"))).image_encoder.state_dict()
        for name in ("pruned", "started-anew")
    )
    assert {k: v.shape for k, v in pruned.items()} == {k: v.shape for k, v in anew.items()}
    shared = [name for name in pruned if pruned[name].ndim > 1 and (pruned[name] == anew[name]).any()]
    assert not shared


def test_measured_pictures_are_val_and_always_the_same():
    data = open_joined(DATA)
    measured = held_out(data, 2)
    assert all(is_val(name) for pictures in measured.values() for name in pictures.names)
    assert {label: pictures.names for label, pictures in measured.items()} == {
        label: pictures.names for label, pictures in held_out(data, 2).items()
    }
    assert drawn(range(9), None) == list(range(9))
    assert len(drawn(range(9), 4)) == 4
