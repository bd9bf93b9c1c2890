"""sam_edge.models.parts: files that hold an encoder or a decoder alone."""

import json
from dataclasses import replace

import pytest
import torch

from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.models.parts import complete
from sam_edge.models.registry import load_model
from tests.models.test_keys import mobile_sam_names


def part(model, *prefixes, strip=False):
    """The tensors of some parts, with or without the part's name before theirs."""
    found = {name: value for name, value in model.state_dict().items() if name.startswith(prefixes)}
    return {name.removeprefix(prefixes[0] + ".") if strip else name: value for name, value in found.items()}


@pytest.fixture
def base(tiny_config, make_sam):
    """A whole SAM whose decoder has a config of its own."""
    decoder = replace(tiny_config.decoder, heads=4, draws_boxes=True)
    thresholds = replace(tiny_config.thresholds, pred_iou=0.3)
    return make_sam(tiny_config.replace(decoder=decoder, thresholds=thresholds), seed=3)


@pytest.fixture
def encoders(tiny_config, mobile_sam_config, make_sam):
    """By kind, a SAM and its encoder as people save one: bare, of DataParallel, of MobileSAM's names, of SlimSAM's."""
    vit, tiny_vit = make_sam(tiny_config), make_sam(mobile_sam_config)
    blocks = tuple(replace(block, qk=24, v=16) for block in tiny_config.blocks)
    slim = make_sam(tiny_config.replace(arch="slim_vit", blocks=blocks))
    mobile = mobile_sam_names(part(tiny_vit, "image_encoder"))
    return {
        "vit": (vit, part(vit, "image_encoder")),
        "bare": (vit, part(vit, "image_encoder", strip=True)),
        "parallel": (vit, {f"module.{name}": v for name, v in part(vit, "image_encoder", strip=True).items()}),
        "mobile-sam": (tiny_vit, mobile),
        "bare mobile-sam": (tiny_vit, {name.removeprefix("image_encoder."): value for name, value in mobile.items()}),
        "slimsam": (slim, part(slim, "image_encoder")),
    }


@pytest.mark.parametrize("kind", ["vit", "bare", "parallel", "mobile-sam", "bare mobile-sam", "slimsam"])
def test_an_encoder_alone_gets_the_base_s_decoder(kind, encoders, base, tmp_path):
    whole, state = encoders[kind]
    torch.save({"model": {**state, "pixel_std": torch.tensor([1.0, 2.0, 4.0])}}, tmp_path / "encoder.pth")
    model = complete(tmp_path / "encoder.pth", base)
    assert model.config.pixel_std == (1, 2, 4)
    assert model.config.arch == whole.config.arch
    assert model.config.decoder == base.config.decoder
    assert model.config.thresholds == base.config.thresholds
    wanted = {**part(whole, "image_encoder"), **part(base, "prompt_encoder", "mask_decoder")}
    torch.testing.assert_close(model.state_dict(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("prefixes", [("mask_decoder",), ("prompt_encoder", "mask_decoder")])
def test_a_decoder_alone_gets_the_base_s_encoder(prefixes, tiny_config, make_sam, tmp_path):
    base, tuned = make_sam(tiny_config, seed=3), make_sam(tiny_config, seed=4)
    torch.save(part(tuned, *prefixes), tmp_path / "decoder.pth")
    model = complete(tmp_path / "decoder.pth", base)
    wanted = {**base.state_dict(), **part(tuned, *prefixes)}
    torch.testing.assert_close(model.state_dict(), wanted, rtol=0, atol=0)


def test_an_encoder_alone_is_refused_with_the_command_that_joins_it(encoders, tmp_path):
    for kind in ("vit", "bare", "bare mobile-sam"):
        torch.save(encoders[kind][1], tmp_path / "encoder.pth")
        with pytest.raises(CheckpointError, match=r"convert FILE --base SAM") as refused:
            load_model(tmp_path / "encoder.pth")
        assert "\n" not in str(refused.value)


def test_what_cannot_be_joined_is_refused_in_one_line(encoders, base, tiny_config, make_sam, tmp_path):
    wide = make_sam(tiny_config.replace(decoder=replace(tiny_config.decoder, dim=64)))
    broken = dict(encoders["vit"][1])
    del broken["image_encoder.neck.0.weight"]
    for state, rest, wanted in (
        (encoders["vit"][0].state_dict(), base, "leave out --base"),
        ({"trunk.0.weight": torch.zeros(1)}, base, "no part of a SAM"),
        (encoders["vit"][1], wide, r"neck\.0\.weight is \(32, 32, 1, 1\) instead of \(64, 32, 1, 1\)"),
        (broken, base, r"neck\.0\.weight is missing"),
    ):
        torch.save(state, tmp_path / "part.pth")
        with pytest.raises(CheckpointError, match=wanted) as refused:
            complete(tmp_path / "part.pth", rest)
        assert "\n" not in str(refused.value)


def test_the_command_writes_the_whole_model(sam_edge, encoders, base, tmp_path):
    whole, state = encoders["bare mobile-sam"]
    torch.save(state, tmp_path / "encoder.pth")
    save_checkpoint(base, tmp_path / "base")
    given = ("convert", tmp_path / "encoder.pth", "--base", tmp_path / "base", "--layout", "safetensors")
    code, text, _ = sam_edge(*given, "--out", tmp_path / "whole.safetensors", "--json")
    assert code == 0
    assert json.loads(text)["bytes"] == (tmp_path / "whole.safetensors").stat().st_size
    model = load_model(tmp_path / "whole.safetensors")
    torch.testing.assert_close(part(model, "image_encoder"), part(whole, "image_encoder"), rtol=0, atol=0)
    assert model.config.lineage[-1]["step"] == "convert"
    # an image encoder is no model
    code, _, error = sam_edge(*given[:1], *given[1:2], *given[4:], "--out", tmp_path / "m.safetensors")
    assert code == 1
    assert "--base" in error
