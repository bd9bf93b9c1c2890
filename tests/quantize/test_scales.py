"""sam_edge.quantize.scales: integers that are never further from a weight than half a step."""

import numpy as np
import pytest
import torch

from sam_edge.errors import QuantizationError
from sam_edge.quantize.scales import check_bits, quantize_weight, symmetric_scale

SHAPES = [(7, 12), (6, 3, 3, 3), (5, 4, 2, 2), (1, 1)]


def weights(*shape: int) -> torch.Tensor:
    """Channels of very different size."""
    generator = torch.Generator().manual_seed(len(shape))
    sizes = torch.logspace(-4, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(*shape, generator=generator) * sizes


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_at_most_half_a_step_of_its_own_channel(shape, bits):
    weight = weights(*shape)
    integers, scale = quantize_weight(weight, bits)
    assert integers.dtype == torch.int8
    assert integers.shape == weight.shape
    assert scale.shape == shape[:1]
    step = scale.double().view(-1, *[1] * (len(shape) - 1))
    error = (integers.double() * step - weight.double()).abs()
    assert (error <= 0.5 * step * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_the_largest_weight_of_a_channel_is_the_last_step(bits):
    weight = weights(9, 20)
    integers, scale = quantize_weight(weight, bits)
    top = 2 ** (bits - 1) - 1
    assert integers.abs().amax(1).tolist() == [top] * 9
    # symmetric: the most negative integer is not used
    assert integers.min() >= -top
    np.testing.assert_allclose((scale * top).numpy(), weight.abs().amax(1).numpy(), rtol=1e-6)


def test_scales_are_those_of_a_float64_loop():
    weight = weights(6, 11)
    wanted = [max(abs(float(value)) for value in row) / 31 for row in weight]
    np.testing.assert_allclose(symmetric_scale(weight, 6).numpy(), wanted, rtol=1e-6)


def test_a_channel_of_zeros_stays_zero():
    weight = weights(3, 8)
    weight[1] = 0
    integers, scale = quantize_weight(weight, 8)
    assert not integers[1].any()
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()


def test_fewer_bits_err_more():
    weight = weights(16, 64)
    errors = []
    for bits in (8, 6, 4, 2):
        integers, scale = quantize_weight(weight, bits)
        errors.append(((integers * scale[:, None] - weight).norm() / weight.norm()).item())
    assert errors == sorted(errors)
    assert errors[0] < 0.01 < errors[-1]


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_other_bits_are_refused(bits):
    with pytest.raises(QuantizationError, match=f"weight bits must be between 2 and 8, got {bits}"):
        quantize_weight(weights(2, 3), bits)
    with pytest.raises(QuantizationError, match="activation bits"):
        check_bits(bits, "activation")
