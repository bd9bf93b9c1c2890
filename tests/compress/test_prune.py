"""Pruning: the widths asked for, and the function of the channels that stay."""

import math

import pytest
import torch
import torch.nn.functional as F

from sam_edge.compress.prune import PruneOptions, prune_encoder
from sam_edge.errors import CompressionError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.config import ModelConfig, uniform_blocks
from sam_edge.models.cost import cost
from sam_edge.models.sam import EdgeSam


def widths(model):
    return {(block.embed, block.qk, block.v, block.mlp) for block in model.config.blocks}


def test_half_of_everything_is_removed(tiny_slim):
    prune_encoder(tiny_slim, PruneOptions(0.5))
    assert widths(tiny_slim) == {(16, 16, 16, 20)}
    assert tiny_slim.image_encoder.pos_embed.shape[-1] == 16


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_a_pruned_model_reloads_to_the_same_function(tiny_slim, pixels, tmp_path, importance):
    prune_encoder(tiny_slim, PruneOptions(0.4, importance))
    save_checkpoint(tiny_slim, tmp_path / "slim")
    assert torch.equal(load_checkpoint(tmp_path / "slim").encode(pixels), tiny_slim.encode(pixels))


def test_removing_channels_of_zero_weight_changes_nothing(tiny_slim, pixels):
    """Bottleneck channels whose weights are zero go, the embedding stays: so does the function."""
    encoder = tiny_slim.image_encoder
    with torch.no_grad():
        for block in encoder.blocks:
            attention, heads = block.attn, block.attn.heads
            dead = [head * 16 + channel for head in range(heads) for channel in range(8)]
            for layer in (attention.q, attention.k, attention.v):
                layer.weight[dead] = 0
                layer.bias[dead] = 0
            attention.proj.weight[:, dead] = 0
            block.mlp.lin1.weight[:20] = 0
            block.mlp.lin1.bias[:20] = 0
            block.mlp.lin2.weight[:, :20] = 0
    wanted = tiny_slim.encode(pixels)
    tables = [block.attn.rel_pos_h.clone() for block in encoder.blocks]
    prune_encoder(tiny_slim, PruneOptions(0.5), parts=("qk", "v", "mlp"))
    assert widths(tiny_slim) == {(32, 16, 16, 20)}
    for block, table in zip(encoder.blocks, tables, strict=True):
        assert torch.equal(block.attn.rel_pos_h, table[:, 8:])
    torch.testing.assert_close(tiny_slim.encode(pixels), wanted, atol=1e-5, rtol=0)


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
    prune_encoder(tiny_slim, PruneOptions(0.5), parts=("embedding",))
    assert widths(tiny_slim) == {(16, 32, 32, 40)}
    kept = encoder.patch_embed.proj.weight.detach().flatten(1)
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
    for block, table in zip(encoder.blocks, tables, strict=True):
        assert torch.equal(block.attn.rel_pos_h, table)


def test_the_old_attention_scale_is_folded_into_k(tiny_slim):
    attention = tiny_slim.image_encoder.blocks[0].attn
    before = attention.k.weight.detach().clone()
    prune_encoder(tiny_slim, PruneOptions(0.5), parts=("qk",))
    after = attention.k.weight.detach() / math.sqrt(8 / 16)
    nearest = (after[:, None] - before).abs().amax(-1).amin(1)
    assert nearest.max() < 1e-6


def test_magnitude_keeps_the_heaviest_channels(tiny_slim):
    lin1 = tiny_slim.image_encoder.blocks[0].mlp.lin1
    with torch.no_grad():
        lin1.weight[[1, 5, 11]] += 10
    heavy = lin1.weight.detach()[[1, 5, 11]].clone()
    prune_encoder(tiny_slim, PruneOptions(0.9), parts=("mlp",))
    kept = tiny_slim.image_encoder.blocks[0].mlp.lin1.weight
    assert all(bool((kept == row).all(1).any()) for row in heavy)


def test_random_importance_follows_its_seed(make_sam, tiny_config):
    def kept(seed):
        model = make_sam(tiny_config.replace(arch="slim_vit"))
        prune_encoder(model, PruneOptions(0.5, "random", seed=seed))
        return model.image_encoder.blocks[0].mlp.lin1.weight

    assert torch.equal(kept(3), kept(3))
    assert not torch.equal(kept(3), kept(4))


def test_a_fused_vit_is_split_on_the_way(make_sam, tiny_config):
    model = make_sam(tiny_config)
    prune_encoder(model, PruneOptions(0.5))
    assert model.config.arch == "slim_vit"
    EdgeSam(model.config).load_state_dict(model.state_dict())


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
def test_a_ratio_outside_0_and_1_is_refused(tiny_slim, ratio):
    with pytest.raises(CompressionError, match="between 0 and 1"):
        prune_encoder(tiny_slim, PruneOptions(ratio))


def test_a_ratio_that_leaves_nothing_is_refused_and_nothing_is_removed(tiny_slim, pixels):
    before = tiny_slim.encode(pixels)
    with pytest.raises(CompressionError, match="leaves nothing"):
        prune_encoder(tiny_slim, PruneOptions(0.99))
    assert torch.equal(tiny_slim.encode(pixels), before)


def test_a_tiny_vit_is_refused(make_sam, tiny_vit_config):
    with pytest.raises(CompressionError, match="ViT"):
        prune_encoder(make_sam(tiny_vit_config), PruneOptions(0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratio", "block", "encoder", "total"),
    [(0.5, (384, 384, 384, 1536), 23.90e6, 27.96e6), (0.77, (168, 168, 168, 696), 5.66e6, 9.72e6)],
)
def test_sam_b_prunes_to_the_papers_widths(ratio, block, encoder, total):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EdgeSam(ModelConfig("vit", 1024, uniform_blocks(12, 768, 12, (2, 5, 8, 11), window=14)))
    prune_encoder(model, PruneOptions(ratio))
    assert widths(model) == {block}
    counted = cost(model.config)
    assert counted.encoder_parameters == pytest.approx(encoder, rel=1e-3)
    assert counted.parameters == pytest.approx(total, rel=1e-3)
