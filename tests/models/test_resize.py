"""sam_edge.models.resize: the same SAM at another image size."""

import pytest
import torch

from sam_edge.errors import ModelError
from sam_edge.models.resize import regridded, resized
from sam_edge.segment.prompts import Prompts


@pytest.fixture(params=["vit", "slim_vit"])
def sam(request, tiny_config, make_sam):
    """A small SAM of either ViT."""
    return make_sam(tiny_config.replace(arch=request.param))


def test_the_same_size_is_the_same_model(sam):
    same = resized(sam, 64)
    assert same.config == sam.config
    assert same is not sam
    torch.testing.assert_close(same.state_dict(), sam.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("size", [32, 48, 128])
def test_only_the_global_positions_change(sam, size):
    grid = size // 8
    state, before = resized(sam, size).state_dict(), sam.state_dict()
    changed = {name: tuple(value.shape) for name, value in state.items() if value.shape != before[name].shape}
    assert changed == {
        "image_encoder.pos_embed": (1, grid, grid, 32),
        "image_encoder.blocks.1.attn.rel_pos_h": (2 * grid - 1, 16),
        "image_encoder.blocks.1.attn.rel_pos_w": (2 * grid - 1, 16),
    }
    for name in state.keys() - changed.keys():
        assert torch.equal(state[name], before[name]), name


def test_a_resized_model_runs_at_its_size(sam):
    small = resized(sam, 32)
    points, labels = torch.full((1, 1, 1, 2), 16.0), torch.ones(1, 1, 1, dtype=torch.long)
    with torch.no_grad():
        embeddings = small.encode(torch.zeros(1, 3, 32, 32))
        logits, _ = small.decoder.decode(embeddings, Prompts.build(points, labels))
    assert embeddings.shape == (1, 32, 4, 4)
    assert logits.shape == (1, 1, 4, 16, 16)


def test_constant_positions_stay_constant(sam):
    with torch.no_grad():
        sam.image_encoder.pos_embed.fill_(0.5)
    torch.testing.assert_close(resized(sam, 128).image_encoder.pos_embed, torch.full((1, 16, 16, 32), 0.5))


@pytest.mark.parametrize("same_pixels", [False, True])
def test_positions_keep_their_meaning_in_the_picture_or_in_pixels(sam, same_pixels):
    """The first cells of a canvas twice as large: half as far from each other in the picture, as far in pixels."""
    other = resized(sam, 128, same_pixels=same_pixels)
    pixel = torch.tensor([[1.0, 0.0]]) / 64

    def phases(model, step):
        return model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.T @ step.T

    step = pixel / 2 if same_pixels else pixel
    torch.testing.assert_close(phases(other, step), phases(sam, pixel))


def test_the_original_is_left_alone(sam):
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    other = resized(sam, 32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    torch.testing.assert_close(sam.state_dict(), before, rtol=0, atol=0)
    assert sam.config.image_size == 64


def test_a_size_that_patches_do_not_fill_is_refused(sam):
    with pytest.raises(ModelError, match="multiple of patch_size"):
        resized(sam, 60)


def test_a_tiny_vit_keeps_its_weights_and_gains_a_grid(tiny_vit_config, make_sam):
    sam = make_sam(tiny_vit_config)
    larger = resized(sam, 2 * tiny_vit_config.image_size)
    torch.testing.assert_close(larger.state_dict(), sam.state_dict(), rtol=0, atol=0)
    assert larger.config.grid == 2 * sam.config.grid


def test_a_finer_grid_sees_the_same_where_a_picture_is_even(timm_config, make_sam):
    sam = make_sam(timm_config).eval()
    finer = regridded(sam, 8)
    assert (finer.config.grid, finer.config.mask_size) == (8, 32)
    changed = {name for name, value in finer.state_dict().items() if value.shape != sam.state_dict()[name].shape}
    assert changed == {"image_encoder.pyramid.laterals.0.weight"}
    maps = torch.randn(1, 24, 1, 1).expand(-1, -1, 8, 8)
    before, after = (each.image_encoder.pyramid.laterals[0] for each in (sam, finer))
    torch.testing.assert_close(after(maps), before(maps).repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(ModelError, match="strides from 8"):
        regridded(sam, 4)
