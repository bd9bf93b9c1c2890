"""Channel groups: what is coupled goes together, what is not stays apart."""

import torch

from sam_edge.compress.groups import find_groups
from sam_edge.compress.prune import prepare
from sam_edge.compress.slices import group_score
from sam_edge.models.vit import SplitAttention


def group_of(model, part, block):
    return next(group for group in find_groups(model) if (group.part, group.block) == (part, block))


def touched(group):
    return {part.name for part in group.slices}


def test_q_goes_with_k_and_the_position_tables_alone(tiny_slim):
    layers = ("q.weight", "q.bias", "k.weight", "k.bias", "rel_pos_h", "rel_pos_w")
    assert touched(group_of(tiny_slim, "qk", 0)) == {f"blocks.0.attn.{name}" for name in layers}


def test_v_goes_with_the_projections_input_alone(tiny_slim):
    group = group_of(tiny_slim, "v", 1)
    assert {(part.name, part.dim) for part in group.slices} == {
        ("blocks.1.attn.v.weight", 0),
        ("blocks.1.attn.v.bias", 0),
        ("blocks.1.attn.proj.weight", 1),
    }


def test_the_residual_stream_goes_through_every_weight_but_the_necks_later_ones(tiny_slim):
    group = group_of(tiny_slim, "embedding", -1)
    width = tiny_slim.config.blocks[0].embed
    state = tiny_slim.image_encoder.state_dict()
    inner = ("q.bias", "k.bias", "v.bias", "lin1.bias", "rel_pos_h", "rel_pos_w")
    wanted = {name for name in state if name.startswith("blocks.") and not name.endswith(inner)}
    wanted |= {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "neck.0.weight"}
    assert touched(group) == wanted
    assert all(state[part.name].shape[part.dim] == width for part in group.slices)


def test_heads_are_tied_in_q_and_k_and_free_in_v(tiny_slim):
    qk, v = group_of(tiny_slim, "qk", 0), group_of(tiny_slim, "v", 0)
    q = next(part for part in qk.slices if part.name.endswith("q.weight"))
    assert (qk.sets, qk.per_set, qk.width) == (1, 16, 32)
    assert q.index[3].tolist() == [3, 19]
    assert (v.sets, v.per_set, v.width) == (2, 16, 32)


def test_a_channels_score_counts_every_weight_that_goes_with_it_once(tiny_slim):
    for group in find_groups(tiny_slim):
        state = dict(tiny_slim.image_encoder.named_parameters())
        score = group_score(group, {name: torch.ones_like(value) for name, value in state.items()})
        removed_from = {part.name: state[part.name].numel() / state[part.name].shape[part.dim] for part in group.slices}
        each = sum(removed_from[part.name] * part.index.shape[1] for part in group.slices)
        assert torch.equal(score, torch.full_like(score, each))


def test_tracing_leaves_the_encoder_as_it_was(tiny_slim, pixels):
    tiny_slim.requires_grad_(False)
    before = tiny_slim.encode(pixels)
    windows = [block.window_size for block in tiny_slim.image_encoder.blocks]
    find_groups(tiny_slim)
    assert [block.window_size for block in tiny_slim.image_encoder.blocks] == windows
    assert all(type(block.attn) is SplitAttention for block in tiny_slim.image_encoder.blocks)
    assert not any(weight.requires_grad for weight in tiny_slim.parameters())
    assert (tiny_slim.encode(pixels) == before).all()


def test_tiny_vit_has_groups_in_every_block_and_none_for_the_embedding(make_sam, tiny_vit_config):
    model = make_sam(tiny_vit_config)
    prepare(model)
    groups = find_groups(model)
    assert {group.part for group in groups} == {"qk", "v", "mlp"}
    assert {group.block for group in groups} == {0, 1, 2, 3, 4}
    state = model.image_encoder.state_dict()
    for group in groups:
        for part in group.slices:
            assert part.index.max() < state[part.name].shape[part.dim]
