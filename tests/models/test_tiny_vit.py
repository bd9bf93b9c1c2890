"""sam_edge.models.tiny_vit: the encoder of MobileSAM and TinySAM."""

import dataclasses

import pytest
import torch
from timm.models.tiny_vit import TinyVit

from sam_edge.errors import ModelError
from sam_edge.models.tiny_vit import build_tiny_vit
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import TINY_VIT_5M_STAGES


@pytest.fixture
def encoder(tiny_vit_config, make_sam):
    """A small encoder with random weights, statistics and biases, in evaluation mode."""
    return make_sam(tiny_vit_config).image_encoder


def test_mobile_sam_s_encoder_gives_64_x_64_tokens_at_1024_pixels():
    config = ModelConfig("tiny_vit", 1024, stages=TINY_VIT_5M_STAGES)
    with torch.device("meta"):
        encoder = build_tiny_vit(config).eval()
        assert encoder(torch.zeros(2, 3, 1024, 1024)).shape == (2, 256, 64, 64)
    assert encoder.img_size == 1024


def test_stages_compute_what_timm_s_classifier_does_but_for_the_last_stride(encoder, pixels):
    timm = TinyVit(
        embed_dims=(8, 16, 24, 32),
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 3, 4),
        window_sizes=(1, 3, 3, 7),
        drop_path_rate=0.0,
        num_classes=0,
    ).eval()
    timm.stages[3].downsample.conv2.conv.stride = (1, 1)
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("neck")}
    assert set(own) == {name for name in timm.state_dict() if not name.startswith("head")}
    timm.load_state_dict(own, strict=False)
    with torch.no_grad():
        features = encoder.stages(encoder.patch_embed(pixels))
        torch.testing.assert_close(features, timm.forward_features(pixels))


def test_attention_is_mobile_sam_s_formula(encoder):
    attention = encoder.stages[1].blocks[0].attn
    side, heads, width = 3, attention.num_heads, attention.key_dim
    x = torch.randn(5, side * side, 16, generator=torch.Generator().manual_seed(3))
    q, k, v = attention.qkv(attention.norm(x)).unflatten(-1, (heads, 3 * width)).transpose(1, 2).chunk(3, -1)
    at = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = (at[:, None] - at[None]).abs()
    bias = attention.attention_biases[:, apart[..., 0] * side + apart[..., 1]]
    weights = (q @ k.transpose(-2, -1) * width**-0.5 + bias).softmax(-1)
    wanted = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), wanted)
    assert attention.norm.eps == 1e-5


def test_a_batch_gives_what_its_images_give_alone(encoder, pixels):
    with torch.no_grad():
        alone = torch.cat([encoder(image[None]) for image in pixels])
        torch.testing.assert_close(encoder(pixels), alone)


def test_loading_weights_after_a_run_changes_the_position_biases_too(encoder, pixels):
    with torch.no_grad():
        before = encoder(pixels)
        state = {name: 3 * v if "attention_biases" in name else v for name, v in encoder.state_dict().items()}
        encoder.load_state_dict(state)
        assert (encoder(pixels) - before).abs().max() > 1e-3


def test_two_backward_passes_in_evaluation_mode(encoder, pixels):
    for _ in range(2):
        encoder(pixels).square().mean().backward()
    assert encoder.stages[1].blocks[0].attn.attention_biases.grad.abs().sum() > 0


def test_train_and_eval_return_the_layer(encoder):
    attention = encoder.stages[1].blocks[0].attn
    assert attention.train() is attention
    assert attention.eval() is attention


def test_exports_without_state(encoder, pixels):
    program = torch.export.export(encoder, (pixels,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pixels), encoder(pixels))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"heads": 2}, "starts with a convolutional stage"),
        (0, {"stride": 2}, "starts with a convolutional stage"),
        (2, {"heads": 0}, "starts with a convolutional stage"),
        (3, {"stride": 2}, "multiply to 32"),
    ],
)
def test_stages_that_cannot_be_built_are_refused(tiny_vit_config, index, change, message):
    stages = list(tiny_vit_config.stages)
    stages[index] = dataclasses.replace(stages[index], **change)
    with pytest.raises(ModelError, match=message):
        build_tiny_vit(tiny_vit_config.replace(stages=tuple(stages)))
