"""Channel groups of timm's backbones, and pruning by them: what is coupled goes together, and the rest stays."""

import json
from dataclasses import replace

import pytest
import torch

from sam_edge.compress.features import recorded
from sam_edge.compress.groups import find_groups
from sam_edge.compress.prune import prune_encoder
from sam_edge.compress.timm_groups import layer_of, owner
from sam_edge.compress.widths import PruneOptions
from sam_edge.errors import CheckpointError, CompressionError, ModelError
from sam_edge.models.checkpoint import load_checkpoint, save_checkpoint
from sam_edge.models.cost import cost
from sam_edge.models.sam import EdgeSam
from sam_edge.models.timm_encoder import fold_batch_norms
from sam_edge.segment.config import BackboneConfig, ModelConfig

MOBILE, GATED, RESNET = "tf_mobilenetv3_small_minimal_100", "tf_mobilenetv3_small_075", "resnet10t"
GROUPED = "regnetx_002"
SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in (RESNET, "repvit_m0_9")]


@pytest.fixture
def behind(timm_config, make_sam):
    """A SAM behind a backbone of timm's, by its name."""

    def make(name: str) -> EdgeSam:
        return make_sam(timm_config.replace(backbone=BackboneConfig(name, width=24)))

    return make


def by_magnitude(ratio=0.5, **changes):
    return PruneOptions(ratio, importance="magnitude", ranking="local", **changes)


def of_part(model, part):
    return [group for group in find_groups(model) if group.part == part]


def silence(encoder, group, channels):
    """Let channels of a group be zero wherever they are made: then nobody can miss them."""
    state = encoder.state_dict()
    with torch.no_grad():
        for part in group.slices:
            if part.dim == 0 and not part.name.endswith("running_var"):
                state[part.name].index_fill_(0, part.index[channels].flatten(), 0.0)


def test_what_a_block_keeps_to_itself_is_its_bottleneck(behind):
    encoder = behind(MOBILE).image_encoder
    groups = of_part(behind(MOBILE), "mlp")
    owners = [owner(group.slices) for group in groups]
    blocks = [name for name, module in encoder.named_modules() if type(module).__name__ == "InvertedResidual"]
    assert owners == [*blocks, "pyramid.blocks.0"]
    first = groups[0]
    assert {layer_of(part) for part in first.slices} == {
        f"{blocks[0]}.{layer}" for layer in ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl")
    }
    assert [part.name for part in first.slices if part.dim == 1] == [f"{blocks[0]}.conv_pwl.weight"]


def test_a_stages_width_goes_through_its_blocks_the_next_stage_and_the_pyramid(behind):
    groups = of_part(behind(MOBILE), "embedding")
    layers = [{layer_of(part) for part in group.slices} for group in groups]
    stage = next(found for found in layers if "backbone.blocks.1.1.conv_pwl" in found)
    stem = "backbone.blocks."
    assert stage == {
        *(f"{stem}1.{block}.{layer}" for block in (0, 1) for layer in ("conv_pwl", "bn3")),
        *(f"{stem}{name}.conv_pw" for name in ("1.1", "2.0")),
        "pyramid.laterals.0",
    }
    assert [group.block for group in groups] == list(range(len(groups)))


@pytest.mark.parametrize("name", [GATED, *SLOWER])
@pytest.mark.parametrize("part", ["mlp", "embedding"])
def test_channels_that_are_zero_can_go_and_nothing_changes(behind, pixels, name, part):
    """Of every group the first channels are silent: exactly those are removed, and the function stays."""
    model = behind(name)
    groups = of_part(model, part)
    for group in groups:
        silence(model.image_encoder, group, slice(group.width // 2))
    with torch.no_grad():
        wanted = model.encode(pixels)
    saliency = {key: value.abs() for key, value in model.image_encoder.named_parameters()}
    for group in groups:
        # so that what is silent is what goes, whatever the layers that read it weigh
        for slices in group.slices:
            if slices.dim == 0 and slices.name in saliency:
                saliency[slices.name] = saliency[slices.name].index_fill(
                    0, slices.index[group.width // 2 :].flatten(), 1e6
                )
    prune_encoder(model, replace(by_magnitude(round_to=1), importance="taylor"), (part,), saliency)
    assert [group.width for group in of_part(model, part)] == [
        width for width in (group.width - group.width // 2 for group in groups) if width >= 16
    ]
    with torch.no_grad():
        found = model.encode(pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [GATED, *SLOWER])
def test_a_pruned_model_reloads_folds_and_costs_less(behind, pixels, tmp_path, name):
    model = behind(name)
    before = cost(model.config)
    prune_encoder(model, PruneOptions(0.4, "magnitude", "global"))
    after = cost(model.config)
    assert after.encoder_parameters < 0.75 * before.encoder_parameters
    assert after.encoder_macs < before.encoder_macs
    again = load_checkpoint(save_checkpoint(model, tmp_path / "slim"))
    assert again.config == model.config
    with torch.no_grad():
        wanted = model.encode(pixels)
        assert torch.equal(again.encode(pixels), wanted)
        fold_batch_norms(again.image_encoder)
        torch.testing.assert_close(again.encode(pixels), wanted, rtol=1e-3, atol=1e-3)


def test_a_model_can_be_pruned_again(behind, pixels):
    model = behind(MOBILE)
    for parts in (("embedding",), ("mlp",), ("embedding", "mlp")):
        before = cost(model.config).encoder_parameters
        prune_encoder(model, by_magnitude(0.3), parts)
        assert cost(model.config).encoder_parameters < before
    assert torch.isfinite(model.encode(pixels)).all()
    EdgeSam(model.config).load_state_dict(model.state_dict())


def test_tracing_leaves_the_encoder_as_it_was(behind, pixels):
    model = behind(RESNET)
    model.requires_grad_(False)
    with torch.no_grad():
        before = model.encode(pixels)
        find_groups(model)
        assert torch.equal(model.encode(pixels), before)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", [GATED, *SLOWER])
@pytest.mark.parametrize("kind", ["bottleneck", "embedding"])
def test_features_are_recorded_alike_before_and_after_the_other_half_is_pruned(behind, pixels, name, kind):
    model, pruned = behind(name), behind(name)
    prune_encoder(pruned, by_magnitude(), ("embedding",) if kind == "bottleneck" else ("mlp",))
    shapes = []
    for each in (model, pruned):
        with torch.no_grad(), recorded(each.image_encoder, kind) as features:
            each.encode(pixels)
        shapes.append([value.shape for value in features])
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 5


def test_widths_that_do_not_fit_are_refused(timm_config):
    for widths, reason in [
        ({"backbone.nothing": (3, 3)}, "no layer"),
        ({"backbone.conv_stem": (99, 3)}, r"\(16, 3\)"),
        ({"backbone.conv_stem": (8,)}, r"\(16, 3\)"),
        ({"backbone.conv_stem": ("8", 3)}, r"\(16, 3\)"),
    ]:
        with pytest.raises(ModelError, match=reason):
            EdgeSam(timm_config.replace(backbone=replace(timm_config.backbone, widths=widths)))
    broken = json.loads(timm_config.to_json())
    broken["backbone"]["widths"] = [8, 3]
    with pytest.raises(CheckpointError, match=r"backbone\.widths must be dict"):
        ModelConfig.from_dict(broken)


def test_a_backbone_without_a_removable_channel_is_refused(timm_config, make_sam):
    """Grouped convolutions stay whole, and a pyramid this narrow too."""
    model = make_sam(timm_config.replace(backbone=BackboneConfig(GROUPED, width=8)))
    with pytest.raises(CompressionError, match="no channels"):
        find_groups(model)
