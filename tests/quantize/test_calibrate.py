"""sam_edge.quantize.calibrate: what is kept does not depend on how the memory was bounded."""

from contextlib import nullcontext

import pytest
import torch

from sam_edge.models.quantized import prepare_for_quantization
from sam_edge.quantize import calibrate
from sam_edge.quantize.calibrate import Observer, Walk
from sam_edge.quantize.ptq import layers_to_quantize
from sam_edge.quantize.samples import Seen

WALK = Walk(rows=6, prompts_per_image=2, seed=3)


@pytest.fixture
def observe(tiny_config, make_sam, photo):
    """Walks over one picture; what each layer saw."""

    def walk(gradient: bool = True) -> dict[str, Seen]:
        model = make_sam(tiny_config)
        prepare_for_quantization(model)
        return Observer(model, gradient).observe(layers_to_quantize(model, ("prompt_encoder.*",)), [photo], WALK)

    return walk


def test_block_by_block_gives_the_rows_and_gradients_of_the_whole_graph(observe, monkeypatch):
    bounded = observe()
    monkeypatch.setattr(calibrate, "block_by_block", lambda encoder: nullcontext())
    whole = observe()
    assert bounded.keys() == whole.keys()
    for name, seen in bounded.items():
        other = whole[name]
        assert seen.total == other.total
        assert [kept.floats for kept in (seen.rows, seen.attention, seen.queries)] == [
            kept.floats for kept in (other.rows, other.attention, other.queries)
        ]
        assert seen.input_high == pytest.approx(other.input_high, rel=1e-4, abs=1e-6)
        samples = [*zip(seen.rows, other.rows, strict=True), *zip(seen.attention, other.attention, strict=True)]
        assert samples
        for mine, its in samples:
            assert (mine.grad is None) == (its.grad is None)
            if mine.grad is not None:
                torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-6)
        for mine, its in zip(seen.rows, other.rows, strict=True):
            # attention without gradients takes another path of PyTorch's
            torch.testing.assert_close(mine.a, its.a, rtol=1e-4, atol=1e-5)
    assert any(rows.grad is not None for name in bounded if "blocks" in name for rows in bounded[name].rows)


def test_only_block_inputs_outlive_the_forward_pass(tiny_sam, pixels):
    """What autograd keeps of a block that is computed again is its input."""
    kept: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    sizes = {}
    for name, bound in (("whole", lambda encoder: nullcontext()), ("blocks", calibrate.block_by_block)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), bound(tiny_sam.image_encoder):
            tiny_sam.encode(pixels.clone().requires_grad_())
        sizes[name] = sum(kept)
    assert sizes["blocks"] < 0.5 * sizes["whole"]


def test_a_walk_without_gradients_takes_the_rows_of_one_with_them(observe):
    without, with_them = observe(gradient=False), observe()
    for name, seen in without.items():
        for mine, its in zip(seen.rows, with_them[name].rows, strict=True):
            torch.testing.assert_close(mine.a, its.a, rtol=1e-5, atol=1e-5)


def test_the_bounds_of_the_activation_behind_a_layer_are_seen(timm_config, make_sam, photo):
    model = make_sam(timm_config)
    prepare_for_quantization(model)
    layers = layers_to_quantize(model, ("prompt_encoder.*",))
    clamps = {name: seen.clamp for name, seen in Observer(model, False).observe(layers, [photo], WALK).items()}
    backbone, unbounded = "image_encoder.backbone.", (-float("inf"), float("inf"))
    # ReLU in this network, ReLU in the pyramid, none behind a bottleneck
    assert clamps[f"{backbone}blocks.1.0.conv_pw"] == (0.0, float("inf"))
    assert clamps["image_encoder.pyramid.blocks.0.conv1"] == (0.0, float("inf"))
    assert clamps[f"{backbone}blocks.1.0.conv_pwl"] == clamps["image_encoder.neck.2"] == unbounded
