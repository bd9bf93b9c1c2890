"""sam_edge.models.split and .factored: the decoder in three parts is the decoder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sam_edge.models.decoder import PromptableDecoder
from sam_edge.models.factored import TINY, FactoredDecoder, can_factor, pays
from sam_edge.models.quantized import Grid, LayerQuantization, insert_quantized_layers, set_integers
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.models.split import PlainSplit, SplitDecoder, cut, wanted_masks
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.segment.config import DecoderConfig, ModelConfig, uniform_blocks
from sam_edge.segment.known import KNOWN
from sam_edge.segment.prompts import ABSENT, NOT_A_POINT

SETS = 5


def some_points(size: int, points: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's prompt sets with labels of every kind, absent points among them."""
    generator = torch.Generator().manual_seed(seed)
    coords = size * torch.rand(1, SETS, points, 2, generator=generator)
    labels = torch.randint(0, 4, (1, SETS, points), generator=generator)
    labels[0, 0, -1], labels[0, 1, 1:], labels[0, 2, 0] = NOT_A_POINT, ABSENT, NOT_A_POINT
    return coords, labels


def some_clicks(model: EdgeSam, points: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """`some_points`, each set's first a click where the model draws those."""
    coords, labels = some_points(model.config.image_size, points)
    if model.config.decoder.draws_points:
        labels[..., 0], labels[..., 1:] = 1, labels[..., 1:].clamp(max=1)
        # at the corners too, where what is drawn ends with the canvas
        coords[0, 0, 0], coords[0, 1, 0] = 0.0, model.config.image_size - 1.0
    return coords, labels


def some_embeddings(config: ModelConfig) -> torch.Tensor:
    """A random image embedding."""
    shape = (1, config.decoder.dim, config.grid, config.grid)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def forms(decoder: PromptableDecoder) -> dict[str, SplitDecoder]:
    """Every form of the split decoder."""
    return {
        "plain": PlainSplit(decoder),
        "factored": FactoredDecoder(decoder),
        "factored, all sets at once": FactoredDecoder(decoder, one_by_one=False),
    }


def assert_same_as_whole(model: EdgeSam, split: SplitDecoder, points: int = 3, tolerance: float = 1e-4) -> None:
    """IoU and logits are the whole decoder's."""
    embeddings = some_embeddings(model.config)
    coords, labels = some_clicks(model, points)
    if model.config.decoder.draws_boxes and isinstance(split, FactoredDecoder):
        # factors are of prompts without a mask, and here a box brings one
        labels = labels.clamp(max=1)
    with torch.inference_mode():
        wanted, wanted_iou = model.decoder(embeddings, coords, labels)
        for_predict, for_upscale = split.prepare(embeddings)
        iou, sets = split.predict(for_predict, coords, labels)
        logits = split.upscale(for_upscale, sets)
    torch.testing.assert_close(iou, wanted_iou[0], rtol=0, atol=tolerance)
    # float32 itself is no better on logits of tens
    torch.testing.assert_close(logits, wanted[0], rtol=1e-5, atol=tolerance)
    assert wanted.std() > 100 * tolerance


@pytest.fixture(scope="module", params=[(1, False), (2, False), (3, False), (1, True), (2, True)], ids=str)
def model(request, make_sam) -> EdgeSam:
    """Decoders of one to three layers, of a grid and a width that are no powers of two, some of which draw clicks."""
    depth, draws = request.param
    decoder = DecoderConfig(dim=48, depth=depth, heads=4, mlp=40, mask_channels=8, iou_hidden=24, draws_points=draws)
    return make_sam(ModelConfig("vit", 56, uniform_blocks(1, 32, 2, (0,), window=0), patch_size=8, decoder=decoder))


@pytest.mark.parametrize("form", ["plain", "factored", "factored, all sets at once"])
@pytest.mark.parametrize("points", [1, 3])
def test_the_parts_are_the_whole(model, form, points):
    assert_same_as_whole(model, forms(model.decoder)[form], points, tolerance=2e-5)


@pytest.mark.parametrize("form", ["plain", "factored"])
def test_nano_is_the_same(form):
    assert_same_as_whole(nano := load_model("nano"), forms(nano.decoder)[form])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "factored", "factored, all sets at once"])
def test_sam_b_s_decoder_is_the_same(form):
    config = KNOWN["vit_b"].config.replace(blocks=uniform_blocks(1, 32, 2, (0,), window=0))
    model = EdgeSam(config)
    initialise(model, 0)
    assert_same_as_whole(model, forms(model.decoder)[form])


@pytest.mark.parametrize("form", ["plain", "factored"])
def test_wanted_masks_are_those_of_the_whole_in_any_order(model, form):
    split = forms(model.decoder)[form]
    embeddings = some_embeddings(model.config)
    coords, labels = some_clicks(model)
    wanted, masks = torch.tensor([4, 0, 4, 2, 4]), torch.tensor([3, 0, 1, 2, 3])
    with torch.inference_mode():
        logits, _ = model.decoder(embeddings, coords, labels)
        for_predict, for_upscale = split.prepare(embeddings)
        _, sets = split.predict(for_predict, coords, labels)
        some, places = cut(sets, wanted)
        got = wanted_masks(split, for_upscale, some, places, masks)
    assert {len(value) for value in some.values()} == {3}
    torch.testing.assert_close(got, logits[0, wanted, masks], rtol=0, atol=2e-5)


def test_attention_of_certainty_makes_no_denormal_numbers(model):
    """Sharp attention underflows; what is left of it must still be the plain walk's."""
    embeddings = 40 * some_embeddings(model.config)
    coords, labels = some_clicks(model)
    split = FactoredDecoder(model.decoder)
    with torch.inference_mode():
        wanted, wanted_iou = model.decoder(embeddings, coords, labels)
        for_predict, for_upscale = split.prepare(embeddings)
        iou, sets = split.predict(for_predict, coords, labels)
        logits = split.upscale(for_upscale, sets)
    draws = model.config.decoder.draws_points
    weights = torch.cat([sets[f"a{draws + layer}"].flatten() for layer in range(model.config.decoder.depth)])
    assert weights.min() == TINY
    torch.testing.assert_close(iou, wanted_iou[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits, wanted[0], rtol=0, atol=1e-4)


def test_the_first_layer_s_share_changes_nothing_of_quantized_layers(tiny_sam):
    layers = [
        f"mask_decoder.transformer.layers.0.{attention}.{part}_proj"
        for attention in ("cross_attn_token_to_image", "cross_attn_image_to_token")
        for part in "qkv"
    ]
    plan = LayerQuantization(Grid.of_range(-4.0, 4.0)).as_dict()
    for layer in insert_quantized_layers(tiny_sam, dict.fromkeys(layers, plan)).values():
        integers = torch.randint(-127, 128, layer.weight.shape, generator=torch.Generator().manual_seed(2))
        layer.set_weight(integers.to(torch.int8), torch.full_like(layer.weight_scale, 0.01))
    assert not can_factor(tiny_sam.decoder)
    assert_same_as_whole(tiny_sam, PlainSplit(tiny_sam.decoder), tolerance=1e-6)


def test_quantized_layers_that_compute_in_float_are_factored(tiny_sam, photo):
    quantize_model(tiny_sam, [photo], QuantizeOptions(metric="minmax", prompts_per_image=4))
    assert not can_factor(tiny_sam.decoder)
    set_integers(tiny_sam, {name for name in tiny_sam.config.quantization if name.startswith("image_encoder.")})
    assert can_factor(tiny_sam.decoder)
    assert_same_as_whole(tiny_sam, FactoredDecoder(tiny_sam.decoder))


def test_halves_are_not_factored(tiny_sam):
    assert can_factor(tiny_sam.decoder)
    assert not can_factor(tiny_sam.half().decoder)


def test_factoring_pays_while_tokens_are_few():
    decoder = load_model("nano").decoder
    assert pays(decoder, points=2)
    assert not pays(decoder, points=20)


def macs(run: Callable[[], Any]) -> tuple[int, Any]:
    """Multiply-accumulates, and the result."""

    def product(start: torch.Size, x: torch.Size, y: torch.Size, **_: Any) -> int:
        return 2 * x.numel() * y[-1]

    # products in place, which torch's counter leaves out
    in_place = {torch.ops.aten.addmm_: product, torch.ops.aten.baddbmm_: product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        result = run()
    return counter.get_total_flops() // 2, result


def test_counts_of_sam_b():
    """GMAC per prompt: 1.8 whole; 0.23 for the IoU and 0.27 more for a set whose masks are wanted."""
    config = KNOWN["vit_b"].config
    with torch.device("meta"), torch.no_grad():
        decoder = EdgeSam(config).decoder
        embeddings = torch.zeros(1, config.decoder.dim, config.grid, config.grid)
        coords, labels = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, dtype=torch.long)

        def parts(split: SplitDecoder) -> tuple[int, int, int]:
            prepare, (for_predict, for_upscale) = macs(lambda: split.prepare(embeddings))
            predict, (_, sets) = macs(lambda: split.predict(for_predict, coords, labels))
            return prepare, predict, macs(lambda: split.upscale(for_upscale, sets))[0]

        plain, _ = macs(lambda: decoder(embeddings, coords, labels))
        _, *shared = parts(PlainSplit(decoder))
        prepare, predict, upscale = parts(FactoredDecoder(decoder))
    assert plain == pytest.approx(1.81e9, rel=0.01)
    assert sum(shared) == pytest.approx(1.41e9, rel=0.01)
    assert predict == pytest.approx(0.231e9, rel=0.01)
    assert upscale == pytest.approx(0.268e9, rel=0.01)
    # what an image costs is made good by its second prompt
    assert prepare < 2 * (plain - predict - upscale)
