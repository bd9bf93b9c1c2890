"""sam_edge.models.cost: held to the figures of the SAM, SlimSAM and MobileSAM papers."""

import pytest
import torch

from sam_edge.models.cost import cost
from sam_edge.segment.known import KNOWN


@pytest.mark.parametrize(
    ("name", "encoder_m", "model_m", "macs_g", "with_attention_g"),
    [
        ("vit_b", 89.67, 93.74, 369, 486),
        ("slimsam-50", 23.90, 27.96, 95, 153),
        ("slimsam-77", 5.66, 9.72, 21, 47),
    ],
)
def test_published_figures(name, encoder_m, model_m, macs_g, with_attention_g):
    counted = cost(KNOWN[name].config)
    assert counted.encoder_parameters / 1e6 == pytest.approx(encoder_m, abs=0.005)
    assert counted.parameters / 1e6 == pytest.approx(model_m, abs=0.005)
    assert round(counted.encoder_macs / 1e9) == macs_g
    assert round(counted.encoder_macs_with_attention / 1e9) == with_attention_g


def test_known_models_of_every_kind_are_counted():
    for name in ("nano", "nano-vit", "vit_t"):
        counted = cost(KNOWN[name].config)
        assert 0 < counted.encoder_parameters < counted.parameters
        assert 0 < counted.encoder_macs <= counted.encoder_macs_with_attention
        # convolutions attend to nothing
        assert (counted.encoder_macs == counted.encoder_macs_with_attention) == (name == "nano")
        assert counted.decoder_macs > 0


def test_fused_and_split_attention_cost_the_same():
    config = KNOWN["vit_b"].config
    assert cost(config.replace(arch="slim_vit")) == cost(config)


def test_layers_are_counted_as_by_hand(tiny_config):
    """Per token: three projections and one out, two of the MLP; windowed blocks work on padding too."""
    tokens, padded = 8 * 8, 9 * 9
    stem = tokens * 3 * 8 * 8 * 32
    attention = (tokens + padded) * 4 * 32 * 32
    mlp = 2 * tokens * 2 * 32 * 40
    neck = tokens * (32 * 32 + 9 * 32 * 32)
    # the q-k and weights-v products, then the two relative position tables
    windowed = 9 * (2 * 9 * 9 * 32 + 2 * 9 * 3 * 32)
    global_ = 2 * tokens * tokens * 32 + 2 * tokens * 8 * 32
    counted = cost(tiny_config)
    assert counted.encoder_macs == stem + attention + mlp + neck
    assert counted.encoder_macs_with_attention - counted.encoder_macs == windowed + global_


def test_parameters_are_those_of_the_built_model(tiny_sam):
    counted = cost(tiny_sam.config)
    assert counted.parameters == sum(parameter.numel() for parameter in tiny_sam.parameters())


def test_counting_leaves_the_default_device_alone(tiny_config):
    cost(tiny_config)
    assert torch.zeros(1).device.type == "cpu"
