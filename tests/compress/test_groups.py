"""Channel groups: what is coupled goes together, what is not stays apart."""

from sam_edge.compress.groups import find_groups
from sam_edge.models.vit import SplitAttention


def layers_of(groups, root, channels):
    """Identities of the layers with weights in a group; the graph's own nodes for additions and views are left out."""
    return {
        id(dependency.layer) for dependency, _ in groups.group(root, channels) if hasattr(dependency.layer, "weight")
    }


def test_q_goes_with_k_alone(tiny_slim):
    encoder = tiny_slim.image_encoder
    groups = find_groups(encoder)
    attention = encoder.blocks[0].attn
    assert layers_of(groups, attention.q, [0]) == {id(attention.q), id(attention.k)}


def test_v_goes_with_the_projections_input_alone(tiny_slim):
    encoder = tiny_slim.image_encoder
    attention = encoder.blocks[1].attn
    assert layers_of(find_groups(encoder), attention.v, [1]) == {id(attention.v), id(attention.proj)}


def test_the_residual_stream_goes_through_every_block(tiny_slim):
    encoder = tiny_slim.image_encoder
    found = layers_of(find_groups(encoder), encoder.patch_embed.proj, [3])
    for block in encoder.blocks:
        coupled = (block.norm1, block.norm2, block.attn.q, block.attn.k, block.attn.v, block.attn.proj)
        for layer in (*coupled, block.mlp.lin1, block.mlp.lin2):
            assert id(layer) in found
    assert id(encoder.neck[0]) in found
    assert id(encoder.neck[2]) not in found


def test_tracing_leaves_the_encoder_as_it_was(tiny_slim, pixels):
    before = tiny_slim.encode(pixels)
    windows = [block.window_size for block in tiny_slim.image_encoder.blocks]
    find_groups(tiny_slim.image_encoder)
    assert [block.window_size for block in tiny_slim.image_encoder.blocks] == windows
    assert all(type(block.attn) is SplitAttention for block in tiny_slim.image_encoder.blocks)
    assert (tiny_slim.encode(pixels) == before).all()
