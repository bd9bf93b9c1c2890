"""sam_edge.studies.versus: two models on the same pictures, each measured once."""

import json

import numpy as np
import pytest

from sam_edge.errors import BenchError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.studies import measuring, versus


@pytest.fixture
def models(tiny_config, make_sam, tmp_path) -> list[str]:
    return [str(save_checkpoint(make_sam(tiny_config, seed=seed), tmp_path / f"model{seed}")) for seed in (1, 2)]


def test_a_difference_is_that_of_the_scores_and_nothing_is_measured_twice(models, tmp_path, capsys, monkeypatch):
    data = ("--data", "synthetic:24:1", "--data", "synthetic:24:2", "--limit", "2")
    args = [*models, *data, "--out", str(tmp_path / "o")]
    versus.main([*args, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == {"synthetic-24-1": 2, "synthetic-24-2": 2}
    assert found["provenance"]["models"].keys() == set(models)
    assert found["provenance"]["data"].keys() == found["pictures"].keys()
    scores = [found["scores"][model] for model in models]
    by_measure = {one["measure"]: one for one in found["compared"]}
    assert {"box", "point", "point_multimask", "synthetic-24-2 box"} <= by_measure.keys()
    for measure, one in by_measure.items():
        assert one["mean"] == pytest.approx(scores[0][measure] - scores[1][measure])
        assert one["low"] <= one["mean"] <= one["high"]
    assert scores[0]["box"] == pytest.approx(np.mean([scores[0][f"synthetic-24-{n} box"] for n in (1, 2)]))
    monkeypatch.setattr(measuring, "evaluate_prompts", lambda *a, **k: pytest.fail("measured again"))
    versus.main(args)
    text = capsys.readouterr().out
    one = by_measure["box"]
    assert f"{100 * one['mean']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})" in text


def test_one_model_alone_is_no_comparison(models, tmp_path):
    for given in (models[:1], [models[0], models[0]]):
        with pytest.raises(BenchError, match="two different MODELs"):
            versus.main([*given, "--data", "synthetic:24:1", "--out", str(tmp_path / "o")])
