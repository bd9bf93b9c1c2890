"""sam_edge.models.keys: other people's state dicts."""

import re
from dataclasses import replace

import pytest
import torch
from segment_anything import sam_model_registry

from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import load_weights
from sam_edge.models.keys import recognise
from sam_edge.models.sam import EdgeSam
from sam_edge.models.vit import split_fused_keys
from sam_edge.segment.config import BlockConfig, uniform_blocks
from sam_edge.segment.known import KNOWN
from sam_edge.segment.prompts import Prompts


def reloaded(state) -> EdgeSam:
    """The model that a state dict alone leads to."""
    native, config = recognise(state)
    model = EdgeSam(config)
    load_weights(model, native, "the test's state")
    return model


def assert_same_weights(one: EdgeSam, other: EdgeSam) -> None:
    """Both have the same names and values."""
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


# segment-anything


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_official_models_are_recognised_from_their_shapes(name):
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    native, config = recognise(state)
    assert config == KNOWN[name].config
    assert native.keys() == state.keys()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_official_names_round_trip_at_reduced_sizes(tiny_sam, prefix):
    model = reloaded({prefix + name: value for name, value in tiny_sam.state_dict().items()})
    assert model.config == tiny_sam.config
    assert_same_weights(model, tiny_sam)


def test_a_window_larger_than_the_grid_is_padded_and_a_table_larger_than_it_interpolated(tiny_config, make_sam, pixels):
    """As segment-anything's own encoder runs them, of one file."""
    for window, table in ((14, 8), (3, 64), (14, 64)):
        blocks = uniform_blocks(2, 32, 2, (1,), window=window, mlp=40)
        theirs = make_sam(tiny_config.replace(blocks=blocks))
        for axis in "hw":
            name = f"rel_pos_{axis}"
            generator = torch.Generator().manual_seed(ord(axis))
            values = torch.nn.Parameter(torch.randn(2 * table - 1, 16, generator=generator))
            setattr(theirs.image_encoder.blocks[1].attn, name, values)
        ours = reloaded(theirs.state_dict())
        assert [block.window for block in ours.config.blocks] == [window, 0]
        with torch.no_grad():
            torch.testing.assert_close(ours.encode(pixels), theirs.encode(pixels), rtol=0, atol=1e-5)


def test_a_tensor_of_the_wrong_shape_is_named(tiny_sam):
    state = tiny_sam.state_dict()
    state["image_encoder.neck.0.weight"] = torch.zeros(32, 31, 1, 1)
    with pytest.raises(CheckpointError, match=r"neck\.0\.weight is \(32, 31, 1, 1\) instead of \(32, 32, 1, 1\)"):
        reloaded(state)


def test_a_missing_tensor_is_named(tiny_sam):
    state = tiny_sam.state_dict()
    del state["image_encoder.pos_embed"]
    with pytest.raises(CheckpointError, match=r"has no image_encoder\.pos_embed"):
        recognise(state)


def test_an_unknown_layout_is_shown_with_the_known_ones():
    with pytest.raises(
        CheckpointError, match=r"layout \(trunk\.a, trunk\.b, trunk\.c, \.\.\.\): known are segment-any"
    ):
        recognise({f"trunk.{letter}": torch.zeros(1) for letter in "abcd"})


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("image_encoder.trunk.blocks.0.attn.qkv.weight", "SAM 2"),
        ("module.memory_attention.layers.0.norm1.weight", "SAM 2"),
        ("vision_encoder.backbone.blocks.0.attn.qkv.weight", "SAM 2"),
        ("detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight", "SAM 3"),
        ("sam3_model.backbone.vision_backbone.trunk.pos_embed", "SAM 3"),
    ],
)
def test_later_generations_are_refused_by_name(name, generation):
    with pytest.raises(CheckpointError, match=f"this is a {generation} checkpoint"):
        recognise({name: torch.zeros(1), "mask_decoder.iou_token.weight": torch.zeros(1, 256)})


def test_the_statistics_of_pixels_are_kept(tiny_sam):
    state = tiny_sam.state_dict()
    state |= {
        "module.pixel_mean": torch.full((3, 1, 1), 127.5),
        "module.pixel_std": torch.tensor([[1.0], [2.0], [3.0]]),
    }
    _, config = recognise(state)
    assert (config.pixel_mean, config.pixel_std) == ((127.5,) * 3, (1.0, 2.0, 3.0))


@pytest.mark.parametrize("deviation", [[1.0, 0.0, 1.0], [1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_statistics_that_are_none_are_refused(tiny_sam, deviation):
    with pytest.raises(CheckpointError, match="pixel_std"):
        recognise(tiny_sam.state_dict() | {"pixel_std": torch.tensor(deviation)})


def test_an_empty_state_is_refused():
    with pytest.raises(CheckpointError, match="no tensors"):
        recognise({})


# SlimSAM and our own


def test_slim_sam_s_free_widths_are_read_off_its_split_projections(tiny_config, make_sam):
    """Its authors save `image_encoder.module.*`, as DataParallel has it."""
    blocks = (BlockConfig(28, 24, 18, 20, heads=2, window=3), BlockConfig(28, 16, 30, 44, heads=2, window=0))
    sam = make_sam(tiny_config.replace(arch="slim_vit", blocks=blocks))
    state = {name.replace("image_encoder.", "image_encoder.module."): value for name, value in sam.state_dict().items()}
    model = reloaded(state)
    assert model.config == sam.config
    assert_same_weights(model, sam)


def test_split_sam_keys_make_a_slim_vit_of_the_same_function(tiny_sam, pixels):
    """SlimSAM starts from `sam_vit_b_qkv.pth`: SAM with q, k and v taken apart."""
    model = reloaded(split_fused_keys(tiny_sam.state_dict()))
    assert model.config == tiny_sam.config.replace(arch="slim_vit")
    with torch.no_grad():
        torch.testing.assert_close(model.encode(pixels), tiny_sam.encode(pixels), rtol=1e-4, atol=1e-5)


def test_without_relative_positions_the_config_file_is_asked_for(tiny_sam):
    state = {name: value for name, value in tiny_sam.state_dict().items() if "rel_pos" not in name}
    with pytest.raises(CheckpointError, match=r"give the checkpoint folder"):
        recognise(state)


# MobileSAM and TinySAM


def mobile_sam_names(state):
    """Our TinyViT's state dict under the names of MobileSAM's own modules."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("image_encoder."):
            name = name.replace(".conv.", ".c.").replace("patch_embed.conv1", "patch_embed.seq.0")
            name = name.replace("patch_embed.conv2", "patch_embed.seq.2").replace(".stages.", ".layers.")
            name = re.sub(r"(\d+)\.downsample", lambda match: f"{int(match[1]) - 1}.downsample", name)
        renamed[name] = value
    return renamed


def test_mobile_sam_s_names_round_trip(mobile_sam_config, make_sam):
    sam = make_sam(mobile_sam_config)
    state = mobile_sam_names(sam.state_dict())
    for sample in (
        "patch_embed.seq.0.c.weight",
        "patch_embed.seq.2.bn.running_var",
        "layers.0.blocks.0.conv1.c.weight",
        "layers.0.downsample.conv2.bn.weight",
        "layers.2.downsample.conv3.c.weight",
        "layers.3.blocks.0.local_conv.c.weight",
        "layers.3.blocks.0.attn.attention_biases",
        "layers.3.blocks.0.mlp.norm.weight",
    ):
        assert f"image_encoder.{sample}" in state
    assert "image_encoder.layers.3.downsample.conv1.c.weight" not in state
    state["image_encoder.norm_head.weight"] = torch.zeros(32)
    state["image_encoder.head.weight"] = torch.zeros(1000, 32)
    state["image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"] = torch.zeros(49, 49, dtype=torch.long)
    model = reloaded(state)
    assert model.config == mobile_sam_config
    assert_same_weights(model, sam)


def test_mobile_sam_s_config_is_the_known_one():
    with torch.device("meta"):
        state = EdgeSam(KNOWN["vit_t"].config).state_dict()
    assert recognise(mobile_sam_names(state))[1] == KNOWN["vit_t"].config
    assert recognise(state)[1] == KNOWN["vit_t"].config


def test_a_tiny_vit_s_image_size_is_told_by_its_windows(tiny_vit_config, make_sam):
    first, *later = tiny_vit_config.stages
    for window, size in ((7, 1024), (8, 256), (12, 384), (16, 512)):
        stages = (
            first,
            *(replace(s, window=side) for s, side in zip(later, (window, 2 * window, window), strict=True)),
        )
        sam = make_sam(tiny_vit_config.replace(image_size=size, stages=stages))
        assert reloaded(mobile_sam_names(sam.state_dict())).config == sam.config


def test_a_tiny_vit_of_unknown_windows_is_asked_for_its_config(tiny_vit_config, make_sam):
    stages = (*tiny_vit_config.stages[:-1], replace(tiny_vit_config.stages[-1], window=5))
    state = make_sam(tiny_vit_config.replace(stages=stages)).state_dict()
    with pytest.raises(CheckpointError, match=r"windows of \[3, 3, 5\] tokens.*give the checkpoint folder"):
        recognise(state)


# Hugging Face


def hugging_face_sam(vision: dict, **parts: dict):
    """transformers' SamModel with random weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config=parts.get("prompt_encoder", {}),
        mask_decoder_config=parts.get("mask_decoder", {}),
    )
    return transformers.SamModel(config).eval()


@pytest.fixture
def small_hugging_face(scatter):
    """The model of `tiny_config`, whose MLP is not four times as wide as its embedding, in transformers."""
    size = {"image_size": 64, "patch_size": 8}
    vision = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "mlp_dim": 40}
    vision |= {"global_attn_indexes": [1], "window_size": 3, "output_channels": 32, "num_pos_feats": 16}
    model = hugging_face_sam(
        vision | size,
        prompt_encoder={"hidden_size": 32, "mask_input_channels": 8} | size,
        mask_decoder={"hidden_size": 32, "mlp_dim": 48, "iou_head_hidden_dim": 24},
    )
    scatter(model, seed=5)
    return model


def test_hugging_face_s_model_gives_the_same_embedding_masks_and_iou(small_hugging_face, tiny_config, pixels):
    model = reloaded(small_hugging_face.state_dict())
    assert model.config == tiny_config
    generator = torch.Generator().manual_seed(7)
    points = 64 * torch.rand(2, 3, 2, 2, generator=generator)
    labels = torch.randint(0, 2, (2, 3, 2), generator=generator)
    with torch.no_grad():
        embeddings = model.encode(pixels)
        theirs = small_hugging_face.get_image_embeddings(pixels)
        logits, iou = model.decoder.decode(embeddings, Prompts.build(points, labels))
        outputs = small_hugging_face(image_embeddings=theirs, input_points=points, input_labels=labels)
    torch.testing.assert_close(embeddings, theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[:, :, 1:], outputs.pred_masks, rtol=0, atol=1e-4)
    torch.testing.assert_close(iou[:, :, 1:], outputs.iou_scores, rtol=0, atol=1e-4)


def test_hugging_face_s_shared_positions_may_be_stored_under_either_name(small_hugging_face):
    state = small_hugging_face.state_dict()
    positions = state.pop("shared_image_embedding.positional_embedding")
    state["prompt_encoder.shared_embedding.positional_embedding"] = positions
    kept = reloaded(state).prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    torch.testing.assert_close(kept, positions, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "hidden", "mlp"), [("slimsam-50", 384, 1536), ("slimsam-77", 168, 696)])
def test_slim_sam_s_uniform_models_on_the_hub_are_the_known_ones(name, hidden, mlp):
    with torch.device("meta"):
        state = hugging_face_sam({"hidden_size": hidden, "mlp_dim": mlp}).state_dict()
        wanted = EdgeSam(KNOWN[name].config).state_dict()
    native, config = recognise(state)
    assert config == KNOWN[name].config
    assert {name: value.shape for name, value in native.items()} == {n: v.shape for n, v in wanted.items()}
