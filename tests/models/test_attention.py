import pytest
import torch
import torch.nn.functional as F

from sam_edge.models import attention
from sam_edge.models.attention import positional_attention
from sam_edge.models.vit import SplitAttention


def operands(batch, height, width, dim, value_dim):
    generator = torch.Generator().manual_seed(0)
    sizes = (dim, dim, value_dim, height, width)
    return [
        torch.randn(batch, height * width, size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in sizes
    ]


def reference(q, k, v, rel_h, rel_w):
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@pytest.mark.parametrize("band", [3, 7, 256])
def test_bands_give_the_attention_and_gradients_of_the_whole_matrix(monkeypatch, band):
    monkeypatch.setattr(attention, "BAND", band)
    inputs = operands(2, 4, 5, 6, 3)
    got, wanted = positional_attention(*inputs), reference(*inputs)
    torch.testing.assert_close(got, wanted)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(got, inputs, direction), torch.autograd.grad(wanted, inputs, direction)
    )


def test_a_large_grid_attends_in_bands_with_and_without_gradients_and_changes_nothing(monkeypatch):
    layer = SplitAttention(8, 8, 8, 2, 6).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 6, 6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = layer(x)
    monkeypatch.setattr(attention, "SMALLEST_BANDED", 36)
    called = []

    def spy(*inputs):
        called.append(inputs[0].shape)
        return positional_attention(*inputs)

    monkeypatch.setattr(attention, "positional_attention", spy)
    got = layer(x)
    assert called == [(4, 36, 4)]
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), layer.parameters()), torch.autograd.grad(wanted.sum(), layer.parameters())
    )
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
    assert len(called) == 2


def test_bfloat16_takes_positions_into_its_products_and_stays_within_its_precision():
    inputs = operands(2, 4, 5, 6, 3)
    direction = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = reference(*inputs)
    wanted_grads = torch.autograd.grad(wanted, inputs, direction)
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    got = positional_attention(*halves)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=0.03)
    for mine, right in zip(torch.autograd.grad(got, halves, direction.bfloat16()), wanted_grads, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=0.02 * right.abs().max().item())
