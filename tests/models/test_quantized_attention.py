"""sam_edge.models.quantized_attention: attention on grids, with a scale per head."""

import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos, get_rel_pos

from sam_edge.errors import QuantizationError
from sam_edge.models import quantized_attention
from sam_edge.models.attention import AttentionProducts
from sam_edge.models.grids import Grid, TwinGrid
from sam_edge.models.quantized import set_dialect, set_integers, set_twin
from sam_edge.models.quantized_attention import AttentionQuantization, Fold, QuantizedProducts

SIZES = torch.tensor([0.01, 1.0, 30.0])
"""Heads of very different magnitude."""


def operands(rows: int = 12, keys: int = 20, seed: int = 0) -> list[torch.Tensor]:
    """q, k and v of two items and three heads; the heads' sizes cancel in the logits."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator) for n in (rows, keys, keys))
    sizes = SIZES[:, None, None]
    return [q * sizes, k / sizes, v * sizes]


def peaks(*operands) -> tuple[float, ...]:
    """Largest magnitude per head."""
    return tuple(torch.stack([x.abs().amax((0, 2, 3)) for x in operands]).amax(0).tolist())


def plan(q, k, v, bits: int = 8, twin: TwinGrid | None = None, bias=None) -> AttentionQuantization:
    """Min-max grids."""
    positions = peaks(*bias) if isinstance(bias, tuple) else ()
    return AttentionQuantization(peaks(q), peaks(k), peaks(v), Grid.of_range(0, 1, bits), twin, bits, positions)


def biases(rows: int, keys: int) -> dict:
    """Every form of bias."""
    generator = torch.Generator().manual_seed(5)
    rel = (torch.randn(2, 3, rows, 4, generator=generator), torch.randn(2, 3, rows, keys // 4, generator=generator))
    table = torch.randn(3, rows, keys, generator=generator)
    return {"none": None, "rel": rel, "mask": (torch.arange(keys) % 5 > 0).expand(2, 1, 1, keys), "table": table}


@pytest.mark.parametrize("dialect", ["cpu", "tensorrt"])
@pytest.mark.parametrize("bias", ["none", "rel", "mask", "table"])
def test_every_head_is_close_to_float_whatever_its_size(bias, dialect):
    q, k, v = operands()
    given = biases(12, 20)[bias]
    quantized = QuantizedProducts(plan(q, k, v, bias=given))
    set_dialect(quantized, dialect)
    got, wanted = quantized(q, k, v, given), AttentionProducts()(q, k, v, given)
    off = (got - wanted).abs().amax((0, 2, 3)) / wanted.abs().amax((0, 2, 3))
    assert off.max() < 0.08
    assert off.max() > 1e-4


def test_the_products_are_integer_arithmetic():
    q, k, v = (x.double() for x in operands())
    found = plan(*operands())
    quantized = QuantizedProducts(found)
    got = quantized(*operands())

    def integers(x, ends):
        return (x / (torch.tensor(ends, dtype=torch.float64)[:, None, None] / 127)).round().clamp(-128, 127)

    back = torch.tensor(found.q, dtype=torch.float64) * torch.tensor(found.k, dtype=torch.float64) / 127**2 * 8**-0.5
    logits = integers(q, found.q) @ integers(k, found.k).mT * back[:, None, None]
    weights = F.softmax(logits, -1)
    peak = weights.amax(-1, keepdim=True)
    codes = (weights / peak * 255).round()
    out = codes @ integers(v, found.v) * peak / 255 / 127 * torch.tensor(found.v, dtype=torch.float64)[:, None, None]
    # a weight on the edge of two steps may fall to either side
    off = (got - out).abs() / out.abs().amax((0, 2, 3), keepdim=True)
    assert off.quantile(0.95) < 1e-4
    assert off.max() < 0.01


@pytest.mark.parametrize("bias", ["none", "rel", "mask", "table"])
def test_bands_change_nothing(monkeypatch, bias):
    q, k, v = operands()
    given = biases(12, 20)[bias]
    quantized = QuantizedProducts(plan(q, k, v, bias=given))
    whole = quantized(q, k, v, given)
    monkeypatch.setattr(quantized_attention, "ROWS_AT_ONCE", 2 * 3 * 20 * 5)
    torch.testing.assert_close(quantized(q, k, v, given), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0], ids=str)
@pytest.mark.parametrize("bits", [8, 6])
def test_folded_positions_are_segment_anything_s_to_float_precision(bits, size):
    """Before rounding; positions far below and far above what q k^T reaches."""
    generator = torch.Generator().manual_seed(3)
    height, width, d = 3, 4, 8
    q, k = (torch.randn(2, 2, height * width, d, generator=generator) for _ in range(2))
    tables = [size * torch.randn(2 * side - 1, d, generator=generator) for side in (height, width)]
    logits = (q * d**-0.5 @ k.mT).flatten(0, 1)
    wanted = add_decomposed_rel_pos(logits, q.flatten(0, 1), *tables, (height, width), (height, width))
    grid = q.unflatten(2, (height, width))
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, tables[0])).flatten(2, 3)
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, tables[1])).flatten(2, 3)
    fold = Fold(plan(q, k, k, bits, bias=(rel_h, rel_w)))
    rows, columns, back = fold(q, k, rel_h, rel_w)
    got = torch.cat(rows, -1) @ torch.cat(columns, -1).mT * back
    torch.testing.assert_close(got.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5 * size)
    # one-hots are whole steps, and what is added to them fits
    torch.testing.assert_close(fold.columns(columns[1]), columns[1], rtol=1e-6, atol=0)
    assert max(part.abs().max() for part in rows) <= 127.001 / fold.top


@pytest.mark.parametrize("bits", [8, 6])
def test_positions_keep_eight_bits_beside_narrower_operands(bits):
    q, k, v = operands()
    given = biases(12, 20)["rel"]
    fold = QuantizedProducts(plan(q, k, v, bits, bias=given)).fold
    rows, columns, back = fold(q, k, *given)
    off = (fold.rows(rows[1]) - rows[1]).abs().amax((0, 2, 3)) * columns[1].amax((0, 2, 3)) * back.flatten()
    # half of 1/127 of the largest, and what rounding one-hots up to whole steps adds
    assert (off / torch.tensor(peaks(*given)) < 1.2 * 0.5 / 127).all()


def test_twin_weights_and_float_products_can_be_switched():
    q, k, v = operands(keys=64)
    twin = TwinGrid.unsigned(1 / 31, 3, 6)
    quantized = QuantizedProducts(plan(q, k, v, 6, twin))
    wanted = AttentionProducts()(q, k, v)

    def error() -> float:
        return (((quantized(q, k, v) - wanted) / SIZES[:, None, None]).square().mean()).item()

    with_twin = error()
    set_twin(quantized, False)
    assert error() != with_twin
    set_integers(quantized, ())
    assert error() == 0


def test_a_plan_survives_config_json():
    for twin in (None, TwinGrid.unsigned(1 / 31, 3, 6)):
        found = plan(*operands(), bits=6, twin=twin, bias=biases(12, 20)["rel"])
        assert found.positions
        assert AttentionQuantization.from_dict(found.as_dict()) == found


def test_rows_that_spread_over_all_keys_keep_their_steps_beside_sharp_ones():
    """One step for all rows would round weights of a thousandth to nothing."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, n, 16, generator=generator) for n in (32, 1024, 1024))
    q[:, :, 16:] *= 20
    got, wanted = QuantizedProducts(plan(q, k, v))(q, k, v), F.scaled_dot_product_attention(q, k, v)
    for rows in (slice(0, 16), slice(16, 32)):
        assert (got - wanted)[:, :, rows].norm() < 0.25 * wanted[:, :, rows].norm()


def test_an_entry_of_weights_themselves_is_refused_with_the_remedy():
    entry = plan(*operands()).as_dict()
    assert AttentionQuantization.from_dict(entry) == plan(*operands())
    del entry["shares_of_peak"]
    with pytest.raises(QuantizationError, match="quantize its float checkpoint again"):
        AttentionQuantization.from_dict(entry)
