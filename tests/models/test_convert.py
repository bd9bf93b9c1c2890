"""sam_edge.models.convert: other people's keys, read back as the very model."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam_edge.cli import options
from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import CONTAINERS, save_checkpoint, weights_sha256
from sam_edge.models.convert import convert
from sam_edge.models.registry import load_model
from sam_edge.segment.config import DecoderConfig

OUT = {
    "segment-anything": "m.pth",
    "transformers": "m",
    "mobile-sam": "m.pt",
    "slimsam": "m.pth",
    "safetensors": "m.safetensors",
}


@pytest.fixture
def models(tiny_config, mobile_sam_config, make_sam):
    """By layout, a model that it has names for."""
    uneven = tuple(replace(block, qk=24, v=16) for block in tiny_config.blocks)
    tiny_vit = make_sam(mobile_sam_config)
    return {
        "segment-anything": make_sam(tiny_config),
        "transformers": make_sam(tiny_config),
        "mobile-sam": tiny_vit,
        "slimsam": make_sam(tiny_config.replace(arch="slim_vit", blocks=uneven)),
        "safetensors": make_sam(tiny_config.replace(decoder=replace(tiny_config.decoder, draws_boxes=True, heads=4))),
    }


@pytest.mark.parametrize("layout", sorted(OUT))
def test_reading_back_is_the_identity(layout, models, tmp_path):
    path = convert(models[layout], tmp_path / OUT[layout], layout)
    again = load_model(path)
    assert weights_sha256(again) == weights_sha256(models[layout])
    assert again.config.decoder == models[layout].config.decoder
    assert again.config.blocks == models[layout].config.blocks


@pytest.mark.parametrize("layout", ["segment-anything", "transformers"])
def test_uniform_slim_blocks_become_segment_anything_s_and_compute_the_same(layout, tiny_slim, pixels, tmp_path):
    again = load_model(convert(tiny_slim, tmp_path / OUT[layout], layout))
    assert again.config.arch == "vit"
    with torch.no_grad():
        torch.testing.assert_close(again.encode(pixels), tiny_slim.encode(pixels), rtol=1e-4, atol=1e-4)


def test_transformers_opens_the_folder_whole_and_computes_the_same(tiny_config, make_sam, pixels, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make_sam(tiny_config)
    path = convert(model, tmp_path / "m", "transformers")
    theirs, info = transformers.SamModel.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        found = theirs.get_image_embeddings(pixels)
        torch.testing.assert_close(found, model.encode(pixels), rtol=1e-3, atol=1e-3)


def test_what_keys_cannot_say_is_refused_in_one_line_and_nothing_is_written(models, tiny_config, make_sam, tmp_path):
    drawing = make_sam(tiny_config.replace(decoder=replace(tiny_config.decoder, draws_boxes=True)))
    heads = make_sam(tiny_config.replace(decoder=DecoderConfig(32, mlp=48, mask_channels=8, iou_hidden=24, heads=4)))
    for model, layout, wanted in (
        (drawing, "segment-anything", "decoder"),
        (heads, "transformers", "decoder"),
        (models["slimsam"], "segment-anything", "block 0"),
        (models["mobile-sam"], "transformers", "choose mobile-sam or safetensors"),
        (models["transformers"], "mobile-sam", "no names for a vit"),
    ):
        with pytest.raises(CheckpointError, match=wanted) as refused:
            convert(model, tmp_path / OUT[layout], layout)
        assert "\n" not in str(refused.value)
    with pytest.raises(CheckpointError, match=r"must end in \.pth"):
        convert(models["segment-anything"], tmp_path / "m.onnx", "segment-anything")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "sam.", "model.sam.", "model.module."])
def test_checkpoints_are_read_as_people_have_them(container, prefix, models, tmp_path):
    model = models["segment-anything"]
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    torch.save({container: state, "epoch": 3}, tmp_path / "m.pth")
    assert weights_sha256(load_model(tmp_path / "m.pth")) == weights_sha256(model)


def test_a_broken_config_in_a_file_s_metadata_is_one_line(models, tmp_path):
    path = convert(models["safetensors"], tmp_path / "m.safetensors", "safetensors")
    for text in ("{", "[]", json.dumps({"schema": 9})):
        save_file(load_file(path), tmp_path / "broken.safetensors", {"sam_edge_config": text})
        with pytest.raises(CheckpointError) as refused:
            load_model(tmp_path / "broken.safetensors")
        assert "\n" not in str(refused.value)


def test_the_command_names_the_layouts_and_what_it_wrote_opens(sam_edge, tiny_config, make_sam, tmp_path):
    assert set(get_args(options.WeightLayout)) == set(OUT)
    save_checkpoint(make_sam(tiny_config), tmp_path / "tiny")
    out = tmp_path / "m.pth"
    code, text, _ = sam_edge("convert", tmp_path / "tiny", "--layout", "segment-anything", "--out", out, "--json")
    assert code == 0
    assert json.loads(text)["bytes"] == out.stat().st_size
    assert weights_sha256(load_model(out)) == weights_sha256(load_model(tmp_path / "tiny"))
