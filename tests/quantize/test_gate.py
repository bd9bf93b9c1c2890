"""sam_edge.quantize.gate: layers go back, the most sensitive first, until the drop is small enough."""

import pytest
import torch
from torch import nn

from sam_edge.errors import QuantizationError
from sam_edge.models.quantized import QuantizedLayer, QuantizedLinear, QuantizedPatches
from sam_edge.quantize.gate import check_gate, hold_drop
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.quantize.sensitivity import sensitivity

OPTIONS = QuantizeOptions(weights=4, activations=4, metric="hessian", twin=False, prompts_per_image=2, rows=16)
SKIP = ("prompt_encoder.*", "*.products", "mask_decoder.*")


@pytest.fixture
def quantizer(tiny_slim, photo):
    """A small SAM with 4-bit layers in its encoder."""
    options = QuantizeOptions(**{**OPTIONS.__dict__, "skip": SKIP})
    return quantize_model(tiny_slim, [photo], options)


def worst_in_4_bits(model, name: str) -> bool:
    module = model.get_submodule(name)
    return isinstance(module, QuantizedLayer) and module.plan.bits == 4


def test_nothing_goes_back_where_the_drop_is_small(quantizer):
    before = quantizer.model.config
    report = hold_drop(quantizer, 0.05, lambda model: 0.78, 0.8)
    assert report.raised == {}
    assert quantizer.model.config == before
    assert (report.float_score, report.first_score, report.score) == (0.8, 0.78, 0.78)


def test_one_bad_layer_is_found_and_raised_first(quantizer):
    # only one layer costs anything, and it is not the worst by second order
    bad = sorted(quantizer.layers, key=lambda name: -sensitivity(quantizer, name))[4]
    report = hold_drop(quantizer, 0.01, lambda m: 0.5 if worst_in_4_bits(m, bad) else 0.8, 0.8)
    assert report.raised == {bad: "8 bits"}
    assert report.drops[bad] == pytest.approx(0.3)
    assert quantizer.model.config.quantization[bad]["bits"] == 8
    assert isinstance(quantizer.model.get_submodule(bad), QuantizedLinear | QuantizedPatches)
    assert report.score == 0.8
    assert list(report.sensitivities.values()) == sorted(report.sensitivities.values(), reverse=True)


@pytest.mark.parametrize("needed", [1, 2, 5, 7, 11])
def test_no_more_layers_go_back_than_must(quantizer, needed):
    before = {name: quantizer.model.get_submodule(name) for name in quantizer.layers}
    most = len(before) - needed
    report = hold_drop(
        quantizer, 0.01, lambda m: 0.8 if sum(worst_in_4_bits(m, name) for name in before) <= most else 0.7, 0.8
    )
    assert list(report.raised.values()) == needed * ["8 bits"]
    assert report.score == 0.8
    # what was tried and is not needed is what it was
    kept = {name: quantizer.model.get_submodule(name) for name in before if name not in report.raised}
    assert all(before[name] is module for name, module in kept.items())
    assert {name for name, entry in quantizer.model.config.quantization.items() if entry["bits"] == 8} == set(
        report.raised
    )


def test_a_gate_that_leaves_no_integers_is_an_error(quantizer):
    with pytest.raises(QuantizationError, match=r"no layer can be quantized.*--max-drop"):
        hold_drop(quantizer, 0.01, lambda m: 0.7 if m.config.quantization else 0.8, 0.8)


@pytest.mark.parametrize(
    ("max_drop", "options"),
    [(0.01, {"metric": "mse"}), (0.01, {"curvature": "quantized"}), (-0.1, {}), (1.0, {}), (float("nan"), {})],
)
def test_a_gate_that_cannot_work_says_so_first(max_drop, options):
    with pytest.raises(QuantizationError, match="--max-drop"):
        check_gate(max_drop, QuantizeOptions(**options))


def test_layers_become_float_where_eight_bits_do_not_do(quantizer):
    name = "image_encoder.patch_embed.proj"
    report = hold_drop(quantizer, 0.01, lambda m: 0.8 if type(m.get_submodule(name)) is nn.Conv2d else 0.7, 0.8)
    assert report.raised[name] == "float"
    assert name not in (quantizer.model.config.quantization or {})


def test_a_drop_that_nothing_mends_is_an_error(quantizer):
    with pytest.raises(QuantizationError, match="even with every layer in float"):
        hold_drop(quantizer, 0.01, lambda model: 0.1, 0.8)


def test_coarser_layers_are_more_sensitive(tiny_config, make_sam, photo):
    totals = []
    for bits in (8, 4):
        model = make_sam(tiny_config.replace(arch="slim_vit"))
        found = quantize_model(
            model, [photo], QuantizeOptions(weights=bits, activations=bits, prompts_per_image=2, rows=16)
        )
        totals.append({name: sensitivity(found, name) for name in found.layers})
    assert all(value >= 0 for value in totals[0].values())
    assert sum(totals[1].values()) > 20 * sum(totals[0].values())
    assert torch.isfinite(torch.tensor(list(totals[1].values()))).all()


def test_a_walk_without_gradients_has_no_sensitivities(tiny_slim, photo):
    found = quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax", prompts_per_image=1))
    with pytest.raises(QuantizationError, match="--metric hessian"):
        sensitivity(found, "image_encoder.neck.0")
