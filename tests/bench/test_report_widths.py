"""The plot of widths: what it shows of a model, and that it is a picture."""

from dataclasses import replace

from sam_edge.bench.report_widths import block_widths, widths_png
from sam_edge.segment.config import ModelConfig


def test_every_blocks_widths_are_shown(tiny_config):
    config = tiny_config.replace(arch="slim_vit")
    first = replace(config.blocks[0], qk=8, v=12, mlp=20)
    pruned = config.replace(blocks=(first, *config.blocks[1:]))
    assert block_widths(pruned) == {"qk": [8, 32], "v": [12, 32], "mlp": [20, 40]}


def test_a_tiny_vits_convolutions_have_hidden_widths_and_no_attention(tiny_vit_config: ModelConfig):
    widths = block_widths(tiny_vit_config)
    assert widths["mlp"] == [32, 64, 96, 96, 128]
    assert widths["v"] == [16, 24, 24, 32]


def test_a_backbones_convolutions_are_shown_as_wide_as_pruning_left_them(timm_config: ModelConfig):
    pruned = replace(timm_config.backbone, widths={"backbone.conv_stem": (8, 3)})
    whole, narrow = (block_widths(config)["conv"] for config in (timm_config, timm_config.replace(backbone=pruned)))
    assert (whole[0], narrow[0]) == (16, 8)
    assert whole[1:] == narrow[1:]
    assert widths_png(timm_config, {"a": timm_config.replace(backbone=pruned)}).startswith(b"\x89PNG")


def test_the_plot_has_a_row_per_model(tiny_config):
    one, two = (widths_png(tiny_config, dict.fromkeys("ab"[:n], tiny_config)) for n in (1, 2))
    assert one.startswith(b"\x89PNG")

    def height(png):
        return int.from_bytes(png[20:24], "big")

    assert height(two) > height(one)
