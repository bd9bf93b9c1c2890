"""Folded cross attention is segment-anything's, values and gradients."""

import pytest
import torch
from segment_anything.modeling.transformer import Attention, TwoWayTransformer

from sam_edge.models import decoder
from sam_edge.models.attention import AttentionProducts
from sam_edge.models.decoder import attend, two_way
from sam_edge.models.folded_attention import folds, read_image, write_image

BATCH, IMAGE, TOKENS, WIDTH = 3, 20, 7, 16


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def attention():
    torch.manual_seed(1)
    return Attention(WIDTH, 4, downsample_rate=2).double()


def test_tokens_read_the_image_as_in_segment_anything(attention, draw):
    queries, placed, image = draw(BATCH, TOKENS, WIDTH), draw(BATCH, IMAGE, WIDTH), draw(BATCH, IMAGE, WIDTH)
    leaves = [queries, placed, image, *attention.parameters()]
    got, wanted = read_image(attention, queries, placed, image), attention(queries, placed, image)
    torch.testing.assert_close(got, wanted)
    mine = torch.autograd.grad(got.square().sum(), leaves)
    right = torch.autograd.grad(wanted.square().sum(), leaves)
    torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)


def test_the_image_attends_to_the_tokens_that_are_present(attention, draw):
    placed, tokens, values = draw(BATCH, IMAGE, WIDTH), draw(BATCH, TOKENS, WIDTH), draw(BATCH, TOKENS, WIDTH)
    present = torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool)
    present[0, ..., -2:] = False
    leaves = [placed, tokens, values, *attention.parameters()]
    got = write_image(attention, placed, tokens, values, present)
    torch.testing.assert_close(got, attend(attention, placed, tokens, values, present))
    torch.testing.assert_close(got[1:], attention(placed, tokens, values)[1:])
    mine = torch.autograd.grad(got.square().sum(), leaves)
    right = torch.autograd.grad(attend(attention, placed, tokens, values, present).square().sum(), leaves)
    torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)


def test_the_transformer_gives_the_same_folded_or_not(monkeypatch, draw):
    torch.manual_seed(2)
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=32).double()
    image, positions, tokens = draw(BATCH, IMAGE, WIDTH), draw(IMAGE, WIDTH), draw(BATCH, TOKENS, WIDTH)
    present = torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool)
    calls = []
    monkeypatch.setattr(decoder, "read_image", lambda *given: calls.append(0) or read_image(*given))
    got = two_way(transformer, image, positions, tokens, present)
    assert len(calls) == 3
    monkeypatch.setattr(decoder, "folds", lambda attention: False)
    wanted = two_way(transformer, image, positions, tokens, present)
    assert len(calls) == 3
    for mine, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, right)


def test_products_that_are_modules_of_their_own_are_not_folded_away(attention):
    assert folds(attention)
    attention.products = AttentionProducts()
    assert not folds(attention)
