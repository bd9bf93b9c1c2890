"""sam_edge.quantize.samples: rows times weights are the layer's own output, and gradients belong to the same rows."""

import pytest
import torch
from torch import nn

from sam_edge.models.attention import AttentionProducts
from sam_edge.quantize import samples
from sam_edge.quantize.samples import Chance, Seen, from_matrix, watch_attention, watch_layer, weight_matrix

LAYERS = {
    "linear": (nn.Linear(6, 5, bias=False), (2, 7, 6)),
    "patches": (nn.Conv2d(3, 4, 4, 4, bias=False), (2, 3, 12, 16)),
    "padded": (nn.Conv2d(4, 6, 3, padding=1, bias=False), (2, 4, 5, 7)),
    "groups": (nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2, bias=False), (1, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (1, 4, 6, 6)),
    "upscale": (nn.ConvTranspose2d(5, 3, 2, 2, bias=False), (2, 5, 4, 3)),
}


def chance(rows: int, seed: int = 0) -> Chance:
    return Chance(torch.Generator().manual_seed(seed), rows)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_weights_are_outputs_and_gradients_belong_to_them(name):
    module, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = module(x)
    seen = Seen()
    watch_layer(seen, module, x, y, chance(10**6))
    # the gradient of half the sum of squares is the output itself
    (0.5 * y.square().sum()).backward()
    (rows,) = seen.rows
    product = rows.a @ weight_matrix(module)
    torch.testing.assert_close(product, rows.grad, rtol=1e-4, atol=1e-5)
    assert product.numel() == y.numel()
    torch.testing.assert_close(product.flatten().sort().values, y.detach().flatten().sort().values)
    assert seen.total == rows.a.shape[1]
    assert torch.equal(from_matrix(module, weight_matrix(module)), module.weight)


def test_few_rows_are_taken_by_chance():
    module, shape = LAYERS["linear"]
    x = torch.randn(shape)
    found = []
    for seed in (0, 0, 1):
        seen = Seen()
        watch_layer(seen, module, x, module(x), chance(3, seed))
        found.append(seen.rows[0].a)
    assert found[0].shape == (1, 3, 6)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(samples, "LARGEST_SAMPLE", 100)
    module, shape = LAYERS["linear"]
    seen = Seen()
    for _ in range(20):
        x = torch.randn(shape)
        watch_layer(seen, module, x, module(x), chance(4))
    assert len(seen.rows) == 3
    # extremes and counts go on
    assert seen.total == 20 * 14


@pytest.mark.parametrize("bias", ["none", "rel", "mask"])
def test_an_attention_s_rows_give_its_output_and_its_inner_gradient(bias):
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, 2, n, 4, generator=generator).requires_grad_() for n in (6, 8, 8))
    rel = tuple(torch.randn(1, 2, 6, n, generator=generator) for n in (2, 4))
    given = {"none": None, "rel": rel, "mask": (torch.arange(8) < 6).expand(1, 1, 1, 8)}[bias]
    out = AttentionProducts()(q, k, v, given)
    seen = Seen()
    watch_attention(seen, (q, k, v, given), out, chance(6))
    (0.5 * out.square().sum()).backward()
    (sample,) = seen.attention
    torch.testing.assert_close(sample.weights @ sample.v, sample.grad, rtol=1e-4, atol=1e-5)
    # d/dq = (d/d product) k, whatever the order of rows
    torch.testing.assert_close((sample.product_grad() @ sample.k).sum(2), q.grad.sum(2), rtol=1e-4, atol=1e-5)
    # whatever the order of items
    torch.testing.assert_close(sample.k_grad, k.grad)
    torch.testing.assert_close(sample.v_grad, v.grad)
    assert torch.equal(seen.heads["q"], q.detach().abs().amax((0, 2, 3)))


@pytest.mark.parametrize("of_attention", [False, True], ids=["layer", "attention"])
def test_where_not_all_is_kept_every_call_is_as_likely(monkeypatch, of_attention):
    # room for four calls
    for limit in ("LARGEST_SAMPLE", "LARGEST_ATTENTION"):
        monkeypatch.setattr(samples, limit, 4 * (2 * 3 * 4 + 3 * 3 if of_attention else 2 * (4 + 4)) - 1)
    layer, counts = nn.Linear(4, 4), torch.zeros(12)
    for seed in range(300):
        seen, drawn = Seen(), chance(2, seed)
        for call in range(12):
            x = torch.full((1, 3, 4), float(call))
            if of_attention:
                watch_attention(seen, 3 * (x[None],), x[None], drawn)
            else:
                watch_layer(seen, layer, x, layer(x), drawn)
        kept = [sample.k for sample in seen.attention] if of_attention else [rows.a for rows in seen.rows]
        assert (seen.attention if of_attention else seen.rows).calls == 12
        assert len(kept) == 4
        for rows in kept:
            counts[int(rows.flatten()[0])] += 1
    # 100 each, give or take
    assert counts.min() > 65, counts
    assert counts.max() < 135, counts
