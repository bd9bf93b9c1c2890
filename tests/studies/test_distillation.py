"""sam_edge.studies.distillation: its rows, and the table, on models small enough to be distilled in seconds."""

import json

import torch

from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.segment.config import StageConfig
from sam_edge.studies import distillation
from sam_edge.studies.distillation import ROWS, table
from sam_edge.studies.repeats import Scores


def test_the_table_has_all_rows_that_were_asked_for(tiny_slim, tiny_vit_config, make_sam, tmp_path, capsys):
    teacher = save_checkpoint(tiny_slim, tmp_path / "teacher")
    stages = (StageConfig(8, 1, 0, 0, 1), StageConfig(16, 1, 2, 4, 2))
    student = save_checkpoint(make_sam(tiny_vit_config.replace(patch_size=8, stages=stages)), tmp_path / "student")
    arguments = ["--teacher", teacher, "--student", student, "--data", "synthetic:8:3", "--out", tmp_path / "ablation"]
    arguments += ["--row", "embedding only", "--row", "no teacher", "--seed", 0, "--seed", 1, "--steps", 2]
    arguments += ["--batch-size", 2, "--prompts", 2, "--max-rounds", 1, "--views", 1, "--workers", 0]
    distillation.main([str(argument) for argument in arguments])
    text = (tmp_path / "ablation" / "ablation.md").read_text()
    assert text in capsys.readouterr().out
    distillation.main([*map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"]["data"].keys() == {"synthetic-8-3"}
    # neither of the two is in a claim
    assert found["compared"] == []
    assert "| no teacher |" in text
    assert "| embedding only |" in text
    assert "all three" not in text
    rows = json.loads((tmp_path / "ablation" / "ablation.json").read_text())["rows"]
    assert [len(rows[name]["box"]["scores"]) for name in ("no teacher", "embedding only")] == [2, 2]
    # of a student without a teacher not even the prompts' encoding is the teacher's
    students = [load_checkpoint(tmp_path / "ablation" / f"{name}-0") for name in ("no-teacher", "embedding-only")]
    kept = [
        torch.equal(
            m.prompt_encoder.not_a_point_embed.weight, load_checkpoint(teacher).prompt_encoder.not_a_point_embed.weight
        )
        for m in students
    ]
    assert kept == [False, True]


def test_the_table_gives_mean_and_spread_beside_the_papers_value_and_who_beats_whom():
    rows = [row for row in ROWS if row.name in ("no teacher", "all three")]
    results = {
        name: [Scores({"box": value}, {"box": [[(value, 1)]]}) for value in values]
        for name, values in (("no teacher", (0.1, 0.2)), ("all three", (0.5, 0.7)))
    }
    text = table(results, rows, Scores({"box": 0.8}))
    assert "| the teacher | 80.0 | |" in text
    assert "| all three | 60.0 ± 14.1 | tables 3 and 4: 41.9 |" in text
    assert "- box: all three beats no teacher by +45.0 (+40.0 to +50.0)." in text
    assert "no teacher beats" not in text


def test_rows_of_the_paper_differ_in_one_thing_each():
    rows = {row.name: row for row in ROWS}
    full = rows["all three"]
    assert full.losses == (1, 1, 1, 1)
    assert rows["all three, random prompts"].losses == full.losses
    assert not rows["all three, random prompts"].hard_prompts
    assert [rows[name].losses for name in ("output", "output + embedding")] == [(0, 0, 1, 1), (1, 0, 1, 1)]
    assert rows[rows["all three, quantized"].quantized_from] == full
    assert {row.paper.rpartition(" ")[2] for row in ROWS if row.paper} == {
        "40.5",
        "41.6",
        "41.7",
        "41.4",
        "41.9",
        "41.3",
    }
