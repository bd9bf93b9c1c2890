"""sam_edge.segment.config: a config comes back from its file, and a wrong one does not."""

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from sam_edge.errors import CheckpointError, ModelError
from sam_edge.segment.config import BlockConfig, DecoderConfig, ModelConfig, Thresholds, uniform_blocks
from sam_edge.segment.known import KNOWN


def changed(config: ModelConfig, **fields) -> ModelConfig:
    """The config with fields of its first block changed."""
    return config.replace(blocks=(dataclasses.replace(config.blocks[0], **fields), *config.blocks[1:]))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_editors_may_save_it_in_their_encoding(tiny_config, tmp_path, encoding):
    (tmp_path / "config.json").write_text(tiny_config.to_json(), encoding=encoding)
    assert ModelConfig.read(tmp_path / "config.json") == tiny_config


@pytest.mark.parametrize("name", KNOWN)
def test_known_configs_come_back_from_their_file(name, tmp_path):
    (tmp_path / "config.json").write_text(KNOWN[name].config.to_json())
    assert ModelConfig.read(tmp_path / "config.json") == KNOWN[name].config


def test_everything_else_comes_back_too(tiny_config, tmp_path):
    config = tiny_config.replace(
        pixel_mean=(1.0, 2.0, 3.0),
        thresholds=Thresholds(0.5, 0.6, 7.0, nested=0.8),
        quantization={"image_encoder.neck.0": {"bits": 8, "axis": None}},
    ).with_step({"step": "prune", "settings": {"ratio": 0.5}, "seed": 1})
    (tmp_path / "config.json").write_text(config.to_json())
    assert ModelConfig.read(tmp_path / "config.json") == config


def test_steps_are_added_at_the_end_of_a_copy_and_dated(tiny_config):
    before = datetime.now(UTC).replace(microsecond=0)
    config = tiny_config.with_step({"step": "prune"}).with_step({"step": "distil"})
    assert [step["step"] for step in config.lineage] == ["prune", "distil"]
    assert all(before <= datetime.fromisoformat(step["date"]) <= datetime.now(UTC) for step in config.lineage)
    assert tiny_config.lineage == ()


def test_sizes_follow_from_the_image_size(tiny_config):
    assert tiny_config.grid == 8
    assert tiny_config.mask_size == 32
    assert tiny_config.replace(image_size=1024, patch_size=16).mask_size == 256


def test_uniform_blocks_are_windowed_but_for_the_global_ones():
    blocks = uniform_blocks(4, 32, 2, (1, 3), window=7)
    assert [block.window for block in blocks] == [7, 0, 7, 0]
    assert blocks[0] == BlockConfig(32, 32, 32, 128, 2, 7)
    assert uniform_blocks(1, 32, 2, (), window=7, mlp=50)[0].mlp == 50


def test_an_image_size_that_patches_do_not_fill_is_refused(tiny_config):
    with pytest.raises(ModelError, match=r"multiple of patch_size \(8\), got 60"):
        tiny_config.replace(image_size=60)


@pytest.mark.parametrize("field", ["qk", "v"])
def test_heads_that_do_not_divide_are_refused(tiny_config, field):
    with pytest.raises(ModelError, match="block 0: 2 heads must divide"):
        changed(tiny_config.replace(arch="slim_vit"), **{field: 31})


@pytest.mark.parametrize("field", ["qk", "v", "embed"])
def test_a_vit_of_other_widths_must_be_slim(tiny_config, field):
    with pytest.raises(ModelError, match="use 'slim_vit'"):
        changed(tiny_config, **{field: 16})


def test_blocks_and_stages_exclude_each_other(tiny_config, tiny_vit_config):
    for fields in (
        {"arch": "tiny_vit"},
        {"stages": tiny_vit_config.stages},
        {"blocks": ()},
    ):
        with pytest.raises(ModelError, match="mixed"):
            tiny_config.replace(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema 99 is not 1"),
        ({"schema": None}, "schema None is not 1"),
        ({"surprise": 1}, "surprise"),
        ({"blocks": [{"embed": 32}]}, "does not describe a model"),
        ({"decoder": {"width": 3}}, "width"),
    ],
)
def test_other_layouts_are_refused(tiny_config, change, message):
    values = json.loads(tiny_config.to_json()) | change
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("image_size",), "big", r"image_size must be int .*got 'big'"),
        (("image_size",), True, "image_size must be int"),
        (("image_size",), -8, "image_size must be int up to 65536, got -8"),
        (("image_size",), 10**9, "image_size must be int up to 65536"),
        (("patch_size",), 0, "patch_size must be at least 1, got 0"),
        (("arch",), "mamba", "arch must be 'vit' or"),
        (("blocks",), 7, "blocks must be tuple"),
        (("blocks", 0, "heads"), 0, r"blocks\[0\].heads must be at least 1"),
        (("blocks", 1, "rel_pos"), 1, r"blocks\[1\].rel_pos must be bool"),
        (("pixel_mean",), [1.0, 2.0], "pixel_mean must have 3 values, got 2"),
        (("pixel_std",), [1.0, 0.0, 1.0], "pixel_std must be positive"),
        (("pixel_std", 0), float("nan"), r"pixel_std\[0\] must be float"),
        (("decoder", "depth"), 60000, "decoder.depth must be at most 256"),
        (("decoder", "dim"), 30, "divided by 8"),
        (("decoder", "draws_boxes"), 0.5, "decoder.draws_boxes must be bool"),
        (("thresholds", "tau"), "x" * 999, r"thresholds.tau must be float, got 'x{1,59}\.$"),
        (("quantization",), [], "quantization must be dict"),
    ],
)
def test_an_entry_of_another_kind_or_size_is_named(tiny_config, place, value, message):
    values = holder = json.loads(tiny_config.to_json())
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises((CheckpointError, ModelError), match=message):
        ModelConfig.from_dict(values)


def test_missing_fields_take_their_defaults(tiny_config):
    values = json.loads(tiny_config.to_json())
    del values["decoder"], values["thresholds"]
    config = ModelConfig.from_dict(values)
    assert config.decoder == DecoderConfig()
    assert config.thresholds == Thresholds()


@pytest.mark.parametrize("content", [b"{", b"[1]", b'"text"', b"5", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        ModelConfig.read(tmp_path / "config.json")
    assert "\n" not in str(caught.value)
