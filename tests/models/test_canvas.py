"""sam_edge.models.canvas: a window sees what the canvas sees there, at the positions that the canvas has there."""

import pytest
import torch
from segment_anything.modeling.image_encoder import get_rel_pos

from sam_edge.errors import ModelError
from sam_edge.models.canvas import CanvasWindow, Place, window_side
from sam_edge.models.decoder import ImageState
from sam_edge.models.registry import load_model
from sam_edge.segment.prompts import Prompts


@pytest.fixture
def model():
    return load_model("nano-vit").float().eval()


def box(*corners: float) -> Prompts:
    return Prompts.build(boxes=torch.tensor([[corners]]))


def background(x: float, y: float) -> Prompts:
    """A point that is not drawn, whatever the model."""
    return Prompts.build(torch.tensor([[[[x, y]]]]), torch.zeros(1, 1, 1, dtype=torch.long))


@torch.no_grad()
def test_the_window_of_everything_is_the_model(model):
    size = model.config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    window = CanvasWindow(model, Place(0, 0, model.config.grid))
    embedding = window.encode(pixels)
    assert torch.equal(embedding, model.encode(pixels))
    asked = Prompts.build(boxes=torch.tensor([[[20.0, 30.0, 90.0, 70.0]], [[5.0, 9.0, 200.0, 250.0]]]))
    for mine, whole in zip(
        window.decoder.decode(embedding, asked), model.decoder.decode(embedding, asked), strict=True
    ):
        assert torch.equal(mine, whole)


@torch.no_grad()
def test_tokens_at_the_same_place_are_positioned_alike(model):
    window = CanvasWindow(model, Place(8, 16, 16))
    whole = model.decoder.positions()
    assert torch.equal(window.decoder.positions(), whole[:, 8:24, 16:32])
    here, there = background(10, 20), background(10 + 128, 20 + 64)
    state = ImageState(torch.randn(1, 256, 128), window.decoder.positions().flatten(1).T)
    mine = window.decoder.predict(state, here.coords, here.labels)
    for one, other in zip(mine, model.decoder.predict(state, there.coords, there.labels), strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_a_box_is_embedded_as_the_canvas_embeds_it_and_drawn_in_the_window(model):
    window = CanvasWindow(model, Place(8, 16, 16))
    here, there = box(10, 20, 40, 60), box(10 + 128, 20 + 64, 40 + 128, 60 + 64)
    mine, whole = (
        sees.decoder.embed_tokens(asked.coords, asked.labels)[0] for sees, asked in ((window, here), (model, there))
    )
    torch.testing.assert_close(mine, whole)
    mine, whole = (
        sees.decoder._draw(asked.coords, asked.labels, None, None)[0]
        for sees, asked in ((window, here), (model, there))
    )
    torch.testing.assert_close(mine, whole[..., 32:96, 64:128])


@torch.no_grad()
def test_what_a_window_embeds_depends_on_its_place_by_position_embeddings_alone(model):
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    one, other = (CanvasWindow(model, Place(*corner, 16)).encode(pixels) for corner in ((0, 0), (9, 5)))
    assert not torch.allclose(one, other)
    model.image_encoder.pos_embed.zero_()
    one, other = (CanvasWindow(model, Place(*corner, 16)).encode(pixels) for corner in ((0, 0), (9, 5)))
    assert torch.equal(one, other)


@torch.no_grad()
def test_relative_positions_of_a_window_are_the_smaller_distances(model):
    tables = CanvasWindow(model, Place(3, 2, 16))._positions()
    block = next(i for i, block in enumerate(model.config.blocks) if not block.window)
    name = f"blocks.{block}.attn.rel_pos_h"
    whole = get_rel_pos(model.config.grid, model.config.grid, model.image_encoder.get_parameter(name))
    assert torch.equal(get_rel_pos(16, 16, tables[name]), whole[5:21, 5:21])
    windowed = next(i for i, block in enumerate(model.config.blocks) if block.window)
    assert f"blocks.{windowed}.attn.rel_pos_h" not in tables


@pytest.mark.parametrize("pixels", [12, 0, 520], ids=str)
def test_windows_that_do_not_fit_are_refused(model, pixels):
    with pytest.raises(ModelError, match="a multiple of 8 px"):
        window_side(model, pixels)


def test_a_tiny_vit_has_no_windows():
    with pytest.raises(ModelError, match="TinyViT"):
        window_side(load_model("random:vit_t"), 64)
