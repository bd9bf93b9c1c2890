"""Which channels stay: local shares, global rankings, rounding."""

import pytest
import torch

from sam_edge.compress.slices import ChannelGroup, Slice
from sam_edge.compress.widths import NORMALIZATIONS, PruneOptions, choose


def group(block, per_set, *, heads=1, sets=1, round_to=4, part="mlp"):
    return ChannelGroup(part, block, heads, sets, round_to, (Slice("w", 0, torch.arange(per_set * sets)[:, None]),))


def scores(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(b + 1) * torch.rand(g.sets, g.per_set, generator=generator).double() ** (b + 1)
            for b, g in enumerate(groups)]  # fmt: skip


def test_local_pruning_keeps_the_best_share_of_each_group():
    groups = [group(0, 40), group(1, 40)]
    found = scores(groups)
    for score, keep in zip(found, choose(groups, found, PruneOptions(0.5, ranking="local")), strict=True):
        assert keep.shape == (1, 20)
        lost = torch.ones(40, dtype=torch.bool).scatter(0, keep[0], False)
        assert score[0, keep[0]].min() >= score[0, lost].max()
        assert keep[0].tolist() == sorted(keep[0].tolist())


@pytest.mark.parametrize("normalization", list(NORMALIZATIONS))
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.77])
def test_global_pruning_meets_the_overall_ratio_within_a_rounding_unit(normalization, ratio):
    groups = [group(b, 128, round_to=8) for b in range(6)]
    kept = choose(groups, scores(groups), PruneOptions(ratio, ranking="global", normalization=normalization))
    widths = [keep.shape[1] for keep in kept]
    assert all(width % 8 == 0 and width >= 8 for width in widths)
    wanted = 6 * 128 * (1 - ratio)
    assert wanted - 8 < sum(widths) <= wanted
    assert len(set(widths)) > 1


def test_global_pruning_without_rounding_is_a_threshold_on_the_normalised_scores():
    groups = [group(b, 50, round_to=1) for b in range(3)]
    found = scores(groups, 1)
    kept = choose(groups, found, PruneOptions(0.4, ranking="global", normalization="mean"))
    stay, go = [], []
    for score, keep in zip(found, kept, strict=True):
        normalised = score[0] / score.mean()
        mask = torch.zeros(50, dtype=torch.bool).scatter(0, keep[0], True)
        stay.append(normalised[mask].min())
        go.append(normalised[~mask].max())
    assert min(stay) >= max(go)


def test_max_and_standardization_are_the_papers_formulas():
    score = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(NORMALIZATIONS["max"](score), score / 4)
    torch.testing.assert_close(NORMALIZATIONS["standardization"](score), (score - 4) / 3)
    torch.testing.assert_close(NORMALIZATIONS["gaussian"](score), (score - 7 / 3) / score.std())


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_heads_stay_equal_within_a_block_and_widths_are_multiples(ranking):
    groups = [group(b, 16, heads=6, sets=6, part="v") for b in range(4)]
    kept = choose(groups, scores(groups), PruneOptions(0.5, ranking=ranking, round_to=4))
    for g, keep in zip(groups, kept, strict=True):
        assert keep.shape[0] == 6
        # 6 heads and multiples of 4: two channels of every head at a time
        assert keep.shape[1] * g.heads % 4 == 0


def test_parts_are_ranked_apart():
    groups = [group(0, 40), group(0, 40, part="v"), group(1, 40), group(1, 40, part="v")]
    found = scores(groups)
    kept = choose(groups, found, PruneOptions(0.5, ranking="global"))
    assert kept[0].shape[1] + kept[2].shape[1] == 40
    assert kept[1].shape[1] + kept[3].shape[1] == 40


def test_every_block_keeps_something_however_unimportant():
    groups = [group(b, 40) for b in range(3)]
    found = scores(groups)
    found[1] = found[1] * 0 + torch.linspace(0, 1e-9, 40)
    kept = choose(groups, found, PruneOptions(0.7, ranking="global", normalization="sum"))
    assert all(keep.shape[1] >= 4 for keep in kept)
