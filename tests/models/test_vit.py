"""sam_edge.models.vit: split attention is segment-anything's, and widths are free."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from sam_edge.models.vit import SplitAttention, build_vit, split_attention, split_fused_keys, swap_modules
from sam_edge.segment.config import BlockConfig


def fused(size: int, rel_pos: bool, scatter) -> Attention:
    """segment-anything's attention with random weights and tables."""
    attention = Attention(24, num_heads=3, use_rel_pos=rel_pos, input_size=(size, size))
    scatter(attention, 2)
    return attention


@pytest.mark.parametrize("rel_pos", [True, False], ids=["positions", "plain"])
@pytest.mark.parametrize(
    ("size", "height", "width"),
    [(3, 3, 3), (8, 8, 8), (8, 8, 5), (5, 4, 7), (8, 12, 12)],
    ids=["window", "global", "narrow", "resampled", "larger"],
)
def test_split_attention_is_the_fused_function(scatter, size, height, width, rel_pos):
    attention = fused(size, rel_pos, scatter)
    x = torch.randn(2, height, width, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        split = SplitAttention.from_fused(attention)
        torch.testing.assert_close(split(x), attention(x), rtol=0, atol=1e-5)


def test_split_attention_has_the_fused_gradients(scatter):
    attention = fused(4, True, scatter)
    split = SplitAttention.from_fused(attention)
    x = torch.randn(2, 4, 4, 24, generator=torch.Generator().manual_seed(0))
    for module in (attention, split):
        module(x).square().sum().backward()
    ours = torch.cat([split.q.weight.grad, split.k.weight.grad, split.v.weight.grad])
    torch.testing.assert_close(ours, attention.qkv.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(split.rel_pos_h.grad, attention.rel_pos_h.grad, rtol=1e-4, atol=1e-4)


def test_split_attention_copies_the_weights(scatter):
    attention = fused(4, True, scatter)
    split = SplitAttention.from_fused(attention)
    before = split.q.weight.detach().clone()
    with torch.no_grad():
        attention.qkv.weight.zero_()
    assert torch.equal(split.q.weight, before)


def test_taking_an_encoder_s_attention_apart_keeps_its_embedding(tiny_sam, pixels):
    with torch.no_grad():
        wanted = tiny_sam.encode(pixels)
        replaced = split_attention(tiny_sam.image_encoder)
        torch.testing.assert_close(tiny_sam.encode(pixels), wanted, rtol=1e-4, atol=1e-5)
    assert sorted(replaced) == ["blocks.0.attn", "blocks.1.attn"]
    assert all(tiny_sam.image_encoder.get_submodule(name) is module for name, module in replaced.items())


def test_a_slim_vit_with_split_weights_is_the_vit(tiny_config, tiny_sam, make_sam, pixels):
    slim = make_sam(tiny_config.replace(arch="slim_vit"), seed=9)
    slim.load_state_dict(split_fused_keys(tiny_sam.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(slim.encode(pixels), tiny_sam.encode(pixels), rtol=1e-4, atol=1e-5)


def test_splitting_keys_takes_apart_nothing_else(tiny_sam):
    state = tiny_sam.state_dict()
    split = split_fused_keys(state)
    kept = {name for name in state if "qkv" not in name}
    assert kept == state.keys() & split.keys()
    stem = "image_encoder.blocks.0.attn."
    joined = torch.cat([split[f"{stem}{part}.weight"] for part in "qkv"])
    assert torch.equal(joined, state[f"{stem}qkv.weight"])


def test_every_block_has_its_own_widths(tiny_config, pixels):
    blocks = (
        BlockConfig(20, 12, 18, 28, heads=3, window=3),
        BlockConfig(20, 8, 16, 36, heads=2, window=0, rel_pos=False),
        BlockConfig(20, 20, 20, 80, heads=4, window=5),
    )
    encoder = build_vit(tiny_config.replace(arch="slim_vit", blocks=blocks))
    for module, block in zip(encoder.blocks, blocks, strict=True):
        assert module.attn.q.out_features == module.attn.k.out_features == block.qk
        assert module.attn.v.out_features == module.attn.proj.in_features == block.v
        assert module.mlp.lin1.out_features == module.mlp.lin2.in_features == block.mlp
        assert module.attn.heads == block.heads
        assert module.window_size == block.window
        assert hasattr(module.attn, "rel_pos_h") == block.rel_pos
    assert encoder.blocks[0].attn.rel_pos_h.shape == (5, 4)
    assert encoder(pixels).shape == (2, 32, 8, 8)


def test_swapping_modules_reports_what_it_put_where():
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2)))
    replaced = swap_modules(model, lambda module: isinstance(module, torch.nn.ReLU), lambda _: torch.nn.GELU())
    assert sorted(replaced) == ["0", "1.0"]
    assert model[0] is replaced["0"]
    assert isinstance(model[1][0], torch.nn.GELU)
    assert isinstance(model[1][1], torch.nn.Linear)
