"""sam_edge.quantize.ptq: every layer becomes integer, and the masks stay."""

import numpy as np
import pytest
import torch
from torch import nn

from sam_edge.errors import QuantizationError
from sam_edge.export.parity import Answers, answers, compare
from sam_edge.models.attention import AttentionProducts
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.quantized import (
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedPatches,
    QuantizedUpscale,
    prepare_for_quantization,
)
from sam_edge.models.quantized_attention import QuantizedProducts
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.segment.frame import to_pixels

FEW = QuantizeOptions(metric="minmax", prompts_per_image=2)


@pytest.fixture(params=["tiny_config", "tiny_vit_config", "timm_config"], ids=["vit", "tiny_vit", "timm"])
def config(request):
    """A config of every architecture; a `vit` becomes a `slim_vit` before anything else."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Three small pictures of blocks and noise."""
    rng = np.random.default_rng(8)
    coarse = rng.integers(0, 256, (3, 6, 8, 3)).repeat(8, 1).repeat(8, 2)
    return list((coarse * 0.8 + rng.integers(0, 50, (3, 48, 64, 3))).astype(np.uint8))


def layers(model: nn.Module, kind) -> set[str]:
    """Names of the modules of a kind."""
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


def test_every_layer_of_encoder_and_decoder_is_quantized(config, make_sam, pictures):
    model, plain = make_sam(config), make_sam(config)
    ranges = quantize_model(model, pictures, FEW).seen
    prepare_for_quantization(plain)
    floats = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    wanted = {name for name in layers(plain, floats) if not name.startswith("prompt_encoder.")}
    products = layers(model, QuantizedProducts)
    assert layers(model, QuantizedLayer) == wanted
    assert wanted | products == set(model.config.quantization)
    assert len(products) == len(layers(plain, AttentionProducts)) > 0
    assert all(name.startswith("prompt_encoder.") for name in layers(model, floats))
    assert len(layers(model, QuantizedUpscale)) == 2
    ends = [[ranges[n].input_low, ranges[n].input_high, ranges[n].output_low, ranges[n].output_high] for n in wanted]
    assert np.isfinite(ends).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_within_half_a_step_of_the_float_ones(config, make_sam, pictures, bits):
    model, plain = make_sam(config), make_sam(config)
    quantize_model(model, pictures[:1], QuantizeOptions(weights=bits, metric="minmax", prompts_per_image=1))
    prepare_for_quantization(plain)
    for name in layers(model, QuantizedLayer):
        layer, weight = model.get_submodule(name), plain.get_submodule(name).weight.detach()
        axis = 1 if isinstance(layer, QuantizedUpscale) else 0
        assert model.config.quantization[name]["axis"] == axis
        shape = [1] * weight.ndim
        shape[axis] = -1
        step = layer.weight_scale.view(shape)
        assert ((layer.weight * step - weight).abs() <= 0.5 * step * (1 + 1e-4)).all(), name
        assert layer.weight.abs().max() == 2 ** (bits - 1) - 1


def test_eight_bit_masks_are_those_of_the_float_model(config, make_sam, pictures):
    model, plain = make_sam(config), make_sam(config)
    wanted = answers(TorchRuntime(plain), pictures)
    quantize_model(model, pictures, QuantizeOptions())
    parity = compare(wanted, answers(TorchRuntime(model), pictures))
    # random weights have logits near zero everywhere, so that masks are at their most fragile
    assert parity.mask_iou > 0.85
    assert parity.largest_logit_error < 0.25
    worse = make_sam(config)
    quantize_model(worse, pictures, QuantizeOptions(weights=3, activations=3, metric="minmax"))
    assert compare(wanted, answers(TorchRuntime(worse), pictures)).mask_iou < parity.mask_iou - 0.05


@pytest.mark.parametrize("curvature", ["fisher", "quantized"])
def test_both_curvatures_quantize_everything_and_give_the_layers_back(config, make_sam, pictures, curvature):
    model, plain = make_sam(config), make_sam(config)
    wanted = answers(TorchRuntime(plain), pictures[:1])
    steps: list[tuple[int, int, str]] = []
    options = QuantizeOptions(6, 6, curvature=curvature, prompts_per_image=2, rows=16)
    quantizer = quantize_model(model, pictures[:2], options, lambda *step: steps.append(step))
    assert set(model.config.quantization) == set(quantizer.layers)
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for name, module in quantizer.layers.items():
        quantizer.put(name, module)
    assert model.config.quantization is None
    # floats were rounded to halves, nothing else
    assert compare(wanted, answers(TorchRuntime(model), pictures[:1])).largest_logit_error < 0.02


def test_convolutions_have_output_grids_and_products_have_none(config, make_sam, pictures):
    model = make_sam(config)
    quantize_model(model, pictures[:1], FEW)
    for name in layers(model, QuantizedLayer):
        layer = model.get_submodule(name)
        assert (layer.plan.output is not None) == isinstance(layer, QuantizedConv2d)


def test_ranges_hold_what_the_layers_see(tiny_config, make_sam, pictures):
    model, plain = make_sam(tiny_config), make_sam(tiny_config)
    ranges = quantize_model(model, pictures, FEW).seen
    seen: list[torch.Tensor] = []
    plain.image_encoder.patch_embed.proj.register_forward_hook(lambda m, given, out: seen.extend((given[0], out)))
    with torch.no_grad():
        for picture in pictures:
            plain.encode(torch.from_numpy(to_pixels(picture, tiny_config)[0]))
    got = ranges["image_encoder.patch_embed.proj"]
    inputs, outputs = torch.cat(seen[::2]), torch.cat(seen[1::2])
    assert (got.input_low, got.input_high) == (inputs.min().item(), inputs.max().item())
    assert got.output_low == pytest.approx(outputs.min().item(), rel=1e-5)
    assert got.output_high == pytest.approx(outputs.max().item(), rel=1e-5)
    entry = model.config.quantization["image_encoder.patch_embed.proj"]
    assert entry["scale"] == pytest.approx((got.input_high - got.input_low) / 255)


def test_more_pictures_widen_ranges(tiny_config, make_sam, pictures):
    one = quantize_model(make_sam(tiny_config), pictures[:1], FEW).seen
    all_of_them = quantize_model(make_sam(tiny_config), pictures, FEW).seen
    encoder = [name for name in one if name.startswith("image_encoder") and not name.endswith(".products")]
    assert all(all_of_them[name].input_low <= one[name].input_low for name in encoder)
    assert all(all_of_them[name].input_high >= one[name].input_high for name in encoder)
    assert any(all_of_them[name].input_high > one[name].input_high for name in encoder)


def test_what_is_skipped_stays_float(tiny_config, make_sam, pictures):
    model = make_sam(tiny_config)
    skip = ("prompt_encoder.*", "image_encoder.neck.*", "*.mlp.lin1")
    quantize_model(model, pictures[:1], QuantizeOptions(metric="minmax", skip=skip, prompts_per_image=1))
    assert type(model.image_encoder.neck[0]) is nn.Conv2d
    assert type(model.image_encoder.blocks[0].mlp.lin1) is nn.Linear
    assert isinstance(model.image_encoder.blocks[0].mlp.lin2, QuantizedLayer)
    assert not any("neck" in name or name.endswith("mlp.lin1") for name in model.config.quantization)
    with pytest.raises(QuantizationError, match="--skip leaves no layer"):
        quantize_model(make_sam(tiny_config), pictures[:1], QuantizeOptions(skip=("*",)))


def test_the_prompt_encoder_can_be_quantized_too(tiny_config, make_sam, pictures):
    model = make_sam(tiny_config)
    quantize_model(model, pictures[:1], QuantizeOptions(metric="minmax", skip=(), prompts_per_image=2))
    assert isinstance(model.prompt_encoder.mask_downscaling[0], QuantizedPatches)


def test_a_checkpoint_of_every_architecture_comes_back_equal(config, make_sam, pictures, tmp_path):
    model = make_sam(config)
    quantize_model(model, pictures[:1], FEW)
    loaded = load_checkpoint(save_checkpoint(model, tmp_path / "quantized"))
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize_model(loaded, pictures[:1], FEW)
    found: list[list[Answers]] = [answers(TorchRuntime(sam), pictures) for sam in (model, loaded)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
        np.testing.assert_array_equal(one.logits, other.logits)


def test_the_same_pictures_and_seed_give_the_same_model(small_slim, make_sam, pictures):
    models = [make_sam(small_slim.config) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        quantize_model(model, pictures, QuantizeOptions(prompts_per_image=2, seed=seed, rows=16))
    assert models[0].config.quantization == models[1].config.quantization
    assert models[0].config.quantization != models[2].config.quantization


def test_a_quantized_model_is_refused(tiny_config, make_sam, pictures):
    model = make_sam(tiny_config)
    quantize_model(model, pictures[:1], FEW)
    with pytest.raises(QuantizationError, match="quantized already: give the float checkpoint"):
        quantize_model(model, pictures[:1], FEW)


def test_no_picture_to_calibrate_on_is_refused(tiny_config, make_sam):
    with pytest.raises(QuantizationError, match="no picture to calibrate on"):
        quantize_model(make_sam(tiny_config), [], FEW)


@pytest.mark.parametrize("options", [{"weights": 1}, {"weights": 9}, {"activations": 1}, {"activations": 16}], ids=str)
def test_other_bits_are_refused_before_anything_changes(tiny_config, make_sam, pictures, options):
    model = make_sam(tiny_config)
    with pytest.raises(QuantizationError, match="bits must be between 2 and 8"):
        quantize_model(model, pictures, QuantizeOptions(**options))
    assert model.config == tiny_config
    assert not layers(model, QuantizedLayer)
