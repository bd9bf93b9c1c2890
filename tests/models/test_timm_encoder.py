"""Backbones of timm as SAM's image encoder: held to timm's own networks and paddings."""

import copy

import huggingface_hub
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.layers import Conv2dSame, pad_same
from torch import nn

from sam_edge.compress.student import StudentOptions, build_student
from sam_edge.errors import CheckpointError, ModelError
from sam_edge.models.canvas import CanvasWindow, Place, window_side
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.registry import load_model, timm_config
from sam_edge.models.sam import EdgeSam
from sam_edge.models.timm_encoder import TimmEncoder, fold_batch_norms, padding_of, take_pixels
from sam_edge.models.timm_weights import load_backbone
from sam_edge.segment.config import BackboneConfig, ModelConfig

RESNET, MOBILE, REPVIT = "resnet10t", "tf_mobilenetv3_small_minimal_100", "repvit_m0_9"


def behind(config: ModelConfig, name: str, **changes) -> ModelConfig:
    """The config with another backbone."""
    return config.replace(backbone=BackboneConfig(name, width=16, **changes))


def statistics(model: nn.Module) -> list[torch.Tensor]:
    """Running means of all batch norms."""
    return [module.running_mean.clone() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.fixture
def classifier(scatter):
    """A network of timm's with weights and statistics of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = timm.create_model(MOBILE)
    scatter(network, 3)
    return network.eval()


@pytest.mark.parametrize("patch", [8, 16, 32])
def test_the_embedding_has_the_decoders_grid(timm_config, make_sam, pixels, patch):
    model = make_sam(timm_config.replace(patch_size=patch))
    with torch.no_grad():
        found = model.encode(pixels)
    assert found.shape == (2, 32, 64 // patch, 64 // patch)
    assert torch.isfinite(found).all()


def test_every_map_is_seen(timm_config, make_sam, pixels):
    model = make_sam(timm_config)
    maps = [each.requires_grad_() for each in model.image_encoder.backbone(pixels)]
    assert [each.shape[-1] for each in maps] == [8, 4, 2]
    gradients = torch.autograd.grad(model.image_encoder.pyramid(maps).square().sum(), maps)
    assert all((gradient != 0).float().mean() > 0.9 for gradient in gradients)


@pytest.mark.parametrize("name", [MOBILE, RESNET, REPVIT])
def test_batch_norms_folded_are_the_same_function(timm_config, make_sam, pixels, name):
    model = make_sam(behind(timm_config, name))
    with torch.no_grad():
        wanted = model.encode(pixels)
        fold_batch_norms(model.image_encoder)
        found = model.encode(pixels)
    assert not statistics(model)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_training_leaves_the_statistics_of_pretraining(timm_config, make_sam, pixels):
    model = make_sam(timm_config)
    before = statistics(model)
    model.train()
    model.encode(pixels)
    assert len(before) > 10
    assert all(map(torch.equal, before, statistics(model)))


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3), st.integers(1, 2))
def test_padding_is_timms(height, width, kernel, stride, dilation):
    conv = Conv2dSame(1, 1, kernel, stride, dilation=dilation)
    x = torch.rand(1, 1, height, width)
    wanted = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    assert torch.equal(nn.functional.pad(x, padding_of(conv, (height, width))), wanted)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_file_s_weights_are_the_backbones(timm_config, make_sam, classifier, pixels, tmp_path, renamed):
    path = tmp_path / "weights.pth"
    state = classifier.state_dict()
    torch.save({f"its.own.{i}": value for i, value in enumerate(state.values())} if renamed else state, path)
    model = make_sam(timm_config)
    load_backbone(model.image_encoder, f"{MOBILE}={path}")
    with torch.no_grad():
        wanted = classifier.forward_intermediates(pixels, indices=3, intermediates_only=True)
        found = model.image_encoder.backbone(pixels)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_spec_brings_weights_and_pixel_statistics(classifier, tmp_path):
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    model = load_model(f"timm:{MOBILE}={tmp_path / 'weights.safetensors'}")
    assert model.config == timm_config(MOBILE)
    assert model.config.pixel_mean == (127.5, 127.5, 127.5)
    assert torch.equal(model.image_encoder.backbone.conv_stem.weight, classifier.conv_stem.weight)
    other = load_model(f"random:timm:{MOBILE}")
    assert not torch.equal(other.image_encoder.backbone.conv_stem.weight, classifier.conv_stem.weight)


def test_a_checkpoint_folder_is_the_model(timm_config, make_sam, pixels, tmp_path):
    model = make_sam(timm_config)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "model"))
    assert again.config == timm_config
    with torch.no_grad():
        assert torch.equal(again.encode(pixels), model.encode(pixels))


def test_a_student_has_a_pretrained_backbone_and_its_teachers_decoder(tiny_sam, classifier, tmp_path):
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    spec = f"timm:{MOBILE}={tmp_path / 'weights.safetensors'}"
    student = build_student(tiny_sam, StudentOptions(spec), seed=1)
    assert student.config.image_size == tiny_sam.config.image_size
    assert torch.equal(student.image_encoder.backbone.conv_stem.weight, classifier.conv_stem.weight)
    for part in ("mask_decoder", "prompt_encoder"):
        mine, theirs = student.get_submodule(part).state_dict(), tiny_sam.get_submodule(part).state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    random = build_student(tiny_sam, StudentOptions(f"random:{spec}"), seed=1)
    assert not torch.equal(random.image_encoder.backbone.conv_stem.weight, classifier.conv_stem.weight)


def test_a_window_of_the_canvas_is_encoded_as_a_picture_of_its_own(timm_config, make_sam):
    model = make_sam(timm_config.replace(image_size=128))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    window = CanvasWindow(model, Place(2, 3, window_side(model, 64)))
    with torch.no_grad():
        assert torch.equal(window.encode(pixels), model.encode(pixels))
    with pytest.raises(ModelError, match="a multiple of 32 px"):
        window_side(model, 48)


def test_what_cannot_be_had_is_said_in_a_line(timm_config, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="timm has no network 'resnet10s'"):
        EdgeSam(behind(timm_config, "resnet10s"))
    with pytest.raises(ModelError, match="no maps of strides 8, 16, 64 of resnet10t"):
        EdgeSam(behind(timm_config, RESNET, strides=(8, 16, 64)))
    with pytest.raises(ModelError, match="need a patch_size between them"):
        timm_config.replace(patch_size=4)
    with pytest.raises(ModelError, match="has them mixed"):
        timm_config.replace(arch="vit")
    torch.save({"one": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        load_model(f"timm:{RESNET}={tmp_path / 'other.pth'}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=rf"give {RESNET}=FILE with the weights of timm's {RESNET}"):
        load_model(f"timm:{RESNET}")


def test_a_backbone_takes_other_programs_pixels(timm_config):
    """The same maps but at their border, whose padding is another colour."""
    own = (timm_config.pixel_mean, timm_config.pixel_std)
    config = timm_config.replace(pixel_mean=ModelConfig.pixel_mean, pixel_std=ModelConfig.pixel_std)
    encoder = TimmEncoder(timm_config).eval()
    for module in encoder.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    other = copy.deepcopy(encoder)
    take_pixels(other, *own, config)
    pixels = 255 * torch.rand(1, 3, 64, 64)

    def stem(each: TimmEncoder, mean, std) -> torch.Tensor:
        mean, std = (torch.tensor(value)[:, None, None] for value in (mean, std))
        return each.backbone.bn1(each.backbone.conv_stem((pixels - mean) / std))[..., 1:-1, 1:-1]

    with torch.no_grad():
        wanted = stem(encoder, *own)
        torch.testing.assert_close(stem(other, config.pixel_mean, config.pixel_std), wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(stem(encoder, config.pixel_mean, config.pixel_std), wanted, atol=1e-2)
