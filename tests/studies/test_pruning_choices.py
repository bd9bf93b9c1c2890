"""sam_edge.studies.pruning_choices: heads that lose channels of their own, and the table."""

import json

import pytest
import torch

from sam_edge.compress.groups import find_groups
from sam_edge.compress.prune import prepare
from sam_edge.compress.validation import embedding_error
from sam_edge.compress.widths import PruneOptions
from sam_edge.errors import DataError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.studies import pruning_choices


def test_each_head_loses_the_channels_it_needs_least(tiny_config, make_sam):
    model = make_sam(tiny_config)
    prepare(model)
    weights = dict(model.image_encoder.named_parameters())
    generator = torch.Generator().manual_seed(0)
    saliency = {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    pruning_choices.silence_channels_of_heads(model, PruneOptions(0.5, ranking="local"), saliency)
    blocks = model.image_encoder.blocks
    assert len(blocks) == sum(group.part == "qk" for group in find_groups(model))
    for number, block in enumerate(blocks):
        heads = block.attn.heads
        names = [f"blocks.{number}.attn.{part}.{kind}" for part in "qk" for kind in ("weight", "bias")]
        worth = sum(saliency[name].reshape(len(saliency[name]), -1).sum(1) for name in names).view(heads, -1)
        per_head = worth.shape[1]
        for part in (block.attn.q, block.attn.k):
            zero = (part.weight == 0).all(1).view(heads, -1)
            for head in range(heads):
                lost = set(zero[head].nonzero()[:, 0].tolist())
                assert lost == set(worth[head].argsort()[: per_head // 2].tolist())
            assert (part.bias.view(heads, -1)[zero] == 0).all()


def test_the_error_is_that_of_all_pictures_together():
    wanted, got = torch.randn(2, 3, 1, 4, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    scores = pruning_choices._scores(list(got), list(wanted))
    assert scores["embedding error"] == pytest.approx(embedding_error(list(got), list(wanted)))
    assert len(scores.totals["embedding error"][0]) == 3


def test_the_table_compares_both_choices(tiny_config, make_sam, tmp_path, capsys):
    save_checkpoint(make_sam(tiny_config), tmp_path / "model")
    args = [str(tmp_path / "model"), "--images", "synthetic:6", "--ratio", "0.5", "--seed", "0", "--seed", "1"]
    pruning_choices.main([*args, "--importance-images", "2", "--eval-limit", "2"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == [
        "gradients: absolute",
        "gradients: signed",
        "q and k: the same channels in every head",
        "q and k: each head's own",
    ]
    errors = [float(row[2].split()[0]) for row in rows]
    assert all(error > 0 for error in errors)
    # less is taken away where only q and k are
    assert max(errors[2:]) == pytest.approx(min(errors[2:]), rel=10)
    assert max(errors[2:]) < min(errors[:2])
    pruning_choices.main([*args, "--importance-images", "2", "--eval-limit", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [f"{choice['embedding error']['mean']:.4f}" for choice in found["choices"].values()] == [
        row[2].split()[0] for row in rows
    ]
    own, kept = found["compared"]
    assert own["mean"] == pytest.approx(errors[1] - errors[0], abs=2e-4)
    assert kept["mean"] == pytest.approx(errors[2] - errors[3], abs=2e-4)
    assert (own["runs"], own["pictures"]) == (2, 2)
    assert found["provenance"]["models"].keys() == {str(tmp_path / "model")}


def test_pictures_to_measure_on_alone_are_too_few(tiny_config, make_sam, tmp_path):
    save_checkpoint(make_sam(tiny_config), tmp_path / "model")
    with pytest.raises(DataError, match="lower --eval-limit"):
        pruning_choices.main([str(tmp_path / "model"), "--images", "synthetic:6", "--eval-limit", "6"])
