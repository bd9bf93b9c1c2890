"""Pruning: the widths asked for, and the function of the channels that stay."""

import math

import pytest
import torch
import torch.nn.functional as F

from sam_edge.compress.prune import PruneOptions, check_ratio, prune_encoder
from sam_edge.errors import CompressionError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.cost import cost
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig, uniform_blocks
from sam_edge.segment.known import TINY_VIT_5M_STAGES

BOTTLENECK = ("qk", "v", "mlp")


def by_magnitude(ratio=0.5, **changes):
    return PruneOptions(ratio, importance="magnitude", ranking="local", **changes)


def widths(model):
    return {(block.embed, block.qk, block.v, block.mlp) for block in model.config.blocks}


def test_half_of_everything_is_removed(tiny_slim):
    prune_encoder(tiny_slim, by_magnitude())
    assert widths(tiny_slim) == {(16, 16, 16, 20)}
    assert tiny_slim.image_encoder.pos_embed.shape[-1] == 16


@pytest.mark.parametrize("importance", ["magnitude", "random"])
@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("arch", ["slim_vit", "tiny_vit"])
def test_a_pruned_model_reloads_to_the_same_function(
    make_sam, tiny_config, tiny_vit_config, pixels, tmp_path, importance, ranking, arch
):
    model = make_sam(tiny_vit_config if arch == "tiny_vit" else tiny_config.replace(arch=arch))
    before = cost(model.config).encoder_parameters
    prune_encoder(model, PruneOptions(0.4, importance, ranking))
    save_checkpoint(model, tmp_path / "slim")
    again = load_checkpoint(tmp_path / "slim")
    assert torch.equal(again.encode(pixels), model.encode(pixels))
    assert cost(again.config).encoder_parameters < before


def kill(state, names, dim, rows):
    for name in names:
        state[name].index_fill_(dim, torch.tensor(rows), 0.0)


def test_removing_channels_of_zero_weight_changes_nothing(tiny_slim, pixels):
    """Bottleneck channels whose weights are zero go, the embedding stays: so does the function."""
    # of v every head loses channels of its own
    dead = {"qk": [h * 16 + c for h in (0, 1) for c in range(8)], "v": [*range(3, 11), *range(24, 32)]}
    with torch.no_grad():
        for block in range(2):
            stem = f"blocks.{block}."
            state = tiny_slim.image_encoder.state_dict()
            kill(state, [f"{stem}attn.{name}.{kind}" for name in "qk" for kind in ("weight", "bias")], 0, dead["qk"])
            kill(state, [f"{stem}attn.v.weight", f"{stem}attn.v.bias"], 0, dead["v"])
            kill(state, [f"{stem}attn.proj.weight"], 1, dead["v"])
            kill(state, [f"{stem}mlp.lin1.weight", f"{stem}mlp.lin1.bias"], 0, list(range(20)))
            kill(state, [f"{stem}mlp.lin2.weight"], 1, list(range(20)))
            kill(state, [f"{stem}attn.rel_pos_h", f"{stem}attn.rel_pos_w"], 1, list(range(8)))
    wanted = tiny_slim.encode(pixels)
    tables = [block.attn.rel_pos_h.clone() for block in tiny_slim.image_encoder.blocks]
    prune_encoder(tiny_slim, by_magnitude(), parts=BOTTLENECK)
    assert widths(tiny_slim) == {(32, 16, 16, 20)}
    for block, table in zip(tiny_slim.image_encoder.blocks, tables, strict=True):
        assert torch.equal(block.attn.rel_pos_h, table[:, 8:])
    torch.testing.assert_close(tiny_slim.encode(pixels), wanted, atol=1e-5, rtol=0)


def test_removing_a_tiny_vits_channels_of_zero_weight_changes_nothing(make_sam, tiny_vit_config, pixels):
    model = make_sam(tiny_vit_config)
    before = model.config
    with torch.no_grad():
        for block in [block for stage in model.image_encoder.stages[1:] for block in stage.blocks]:
            attention = block.attn
            each = attention.key_dim
            rows = [h * 3 * each + part * each + c for h in range(attention.num_heads) for part in range(3)
                    for c in range(each // 2)]  # fmt: skip
            columns = [h * each + c for h in range(attention.num_heads) for c in range(each // 2)]
            state = block.state_dict()
            kill(state, ["attn.qkv.weight", "attn.qkv.bias"], 0, rows)
            kill(state, ["attn.proj.weight"], 1, columns)
            kill(state, ["mlp.fc1.weight", "mlp.fc1.bias"], 0, list(range(1, 2 * block.dim + 1)))
            kill(state, ["mlp.fc2.weight"], 1, list(range(1, 2 * block.dim + 1)))
        for block in model.image_encoder.stages[0].blocks:
            norms = [f"{conv}.bn.{kind}" for conv in ("conv1", "conv2") for kind in ("weight", "bias")]
            state = block.state_dict()
            kill(state, [*norms, "conv1.conv.weight", "conv2.conv.weight"], 0, list(range(16)))
            kill(state, ["conv3.conv.weight"], 1, list(range(16)))
    wanted = model.encode(pixels)
    prune_encoder(model, by_magnitude(round_to=1))
    for old, new in zip(before.stages, model.config.stages, strict=True):
        assert new.mlp_widths == tuple(width // 2 for width in old.mlp_widths)
        assert not old.heads or (new.qk_widths, new.v_widths) == ((old.embed // 2,) * old.depth,) * 2
    torch.testing.assert_close(model.encode(pixels), wanted, atol=1e-5, rtol=0)


def test_pruning_the_embedding_masks_it_and_renormalises(tiny_slim, pixels):
    """The pruned encoder equals the full one with the removed channels zeroed and LayerNorm over the kept ones."""
    encoder = tiny_slim.image_encoder
    tables = [block.attn.rel_pos_h.clone() for block in encoder.blocks]
    scale = torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.1
    with torch.no_grad():
        encoder.patch_embed.proj.weight.mul_(scale[:, None, None, None])
    masked = EdgeSam(tiny_slim.config)
    masked.load_state_dict(tiny_slim.state_dict())
    full = encoder.patch_embed.proj.weight.detach().clone()
    prune_encoder(tiny_slim, by_magnitude(), parts=("embedding",))
    assert widths(tiny_slim) == {(16, 32, 32, 40)}
    kept = tiny_slim.image_encoder.patch_embed.proj.weight.detach().flatten(1)
    where = [int((full.flatten(1) == row).all(1).nonzero()) for row in kept]
    keep = torch.zeros(32)
    keep[where] = 1

    def masked_norm(norm):
        def forward(x):
            inner = F.layer_norm(x[..., where], (len(where),), norm.weight[where], norm.bias[where], norm.eps)
            out = torch.zeros_like(x)
            out[..., where] = inner
            return out

        return forward

    for block in masked.image_encoder.blocks:
        block.norm1.forward, block.norm2.forward = masked_norm(block.norm1), masked_norm(block.norm2)
    with torch.no_grad():
        masked.image_encoder.neck[0].weight.mul_(keep[None, :, None, None])
    torch.testing.assert_close(tiny_slim.encode(pixels), masked.encode(pixels), atol=1e-5, rtol=1e-5)
    for block, table in zip(tiny_slim.image_encoder.blocks, tables, strict=True):
        assert torch.equal(block.attn.rel_pos_h, table)


def test_the_old_attention_scale_is_folded_into_k(tiny_slim):
    before = tiny_slim.image_encoder.blocks[0].attn.k.weight.detach().clone()
    prune_encoder(tiny_slim, by_magnitude(), parts=("qk",))
    after = tiny_slim.image_encoder.blocks[0].attn.k.weight.detach() / math.sqrt(8 / 16)
    nearest = (after[:, None] - before).abs().amax(-1).amin(1)
    assert nearest.max() < 1e-6


def test_magnitude_keeps_the_heaviest_channels(tiny_slim):
    lin1 = tiny_slim.image_encoder.blocks[0].mlp.lin1
    with torch.no_grad():
        lin1.weight[[1, 5, 11]] += 10
    heavy = lin1.weight.detach()[[1, 5, 11]].clone()
    prune_encoder(tiny_slim, by_magnitude(0.9), parts=("mlp",))
    kept = tiny_slim.image_encoder.blocks[0].mlp.lin1.weight
    assert all(bool((kept == row).all(1).any()) for row in heavy)


def test_random_importance_follows_its_seed(make_sam, tiny_config):
    def kept(seed):
        model = make_sam(tiny_config.replace(arch="slim_vit"))
        prune_encoder(model, PruneOptions(0.5, "random", "local", seed=seed))
        return model.image_encoder.blocks[0].mlp.lin1.weight

    assert torch.equal(kept(3), kept(3))
    assert not torch.equal(kept(3), kept(4))


def test_a_fused_vit_is_split_on_the_way(make_sam, tiny_config):
    model = make_sam(tiny_config)
    prune_encoder(model, by_magnitude())
    assert model.config.arch == "slim_vit"
    EdgeSam(model.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
@pytest.mark.parametrize("refuse", [prune_encoder, check_ratio])
def test_a_ratio_outside_0_and_1_is_refused(tiny_slim, ratio, refuse):
    with pytest.raises(CompressionError, match="between 0 and 1"):
        refuse(tiny_slim, by_magnitude(ratio))


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("refuse", [prune_encoder, check_ratio])
def test_a_ratio_that_leaves_nothing_is_refused_and_nothing_is_removed(tiny_slim, pixels, ranking, refuse):
    before = tiny_slim.encode(pixels)
    with pytest.raises(CompressionError, match="leaves nothing"):
        refuse(tiny_slim, PruneOptions(0.99, "magnitude", ranking))
    assert torch.equal(tiny_slim.encode(pixels), before)


def test_gradient_importance_without_gradients_is_refused(tiny_slim):
    with pytest.raises(CompressionError, match="needs gradients"):
        prune_encoder(tiny_slim, PruneOptions(0.5))


def test_vit_t_loses_the_share_asked_for(make_sam):
    model = EdgeSam(ModelConfig("tiny_vit", 1024, stages=TINY_VIT_5M_STAGES))
    prune_encoder(model, by_magnitude())
    for stage in model.config.stages:
        assert set(stage.mlp_widths) == {2 * stage.embed}
        if stage.heads:
            assert set(stage.v_widths) == {stage.embed // 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratio", "block", "encoder", "total", "macs"),
    [
        (0.5, (384, 384, 384, 1536), 23.90e6, 27.96e6, (95e9, 153e9)),
        (0.77, (168, 168, 168, 696), 5.66e6, 9.72e6, (21e9, 47e9)),
    ],
)
def test_sam_b_prunes_to_the_papers_widths(ratio, block, encoder, total, macs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeSam(ModelConfig("vit", 1024, uniform_blocks(12, 768, 12, (2, 5, 8, 11), window=14)))
    prune_encoder(model, by_magnitude(ratio))
    assert widths(model) == {block}
    counted = cost(model.config)
    assert counted.encoder_parameters == pytest.approx(encoder, rel=1e-3)
    assert counted.parameters == pytest.approx(total, rel=1e-3)
    assert counted.encoder_macs == pytest.approx(macs[0], rel=0.03)
    assert counted.encoder_macs_with_attention == pytest.approx(macs[1], rel=0.03)
