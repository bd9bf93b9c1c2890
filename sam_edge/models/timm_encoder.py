"""Any convolutional backbone of timm as SAM's image encoder: its maps, a small pyramid, SAM's neck.

As NanoSAM (ResNet), EdgeSAM (RepViT) and EfficientViT-SAM do it: maps of several strides are brought to the decoder's
grid and added (Lin et al. 2017), a few convolutions refine the sum, and SAM's neck ends it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from timm.layers import Conv2dSame
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sam_edge.errors import ModelError
from sam_edge.models.neck import build_neck
from sam_edge.models.takers import takers
from sam_edge.segment.config import BackboneConfig, ModelConfig


class TimmEncoder(nn.Module):
    """Backbone, pyramid and neck; takes any batch size, and any image side that the largest stride divides."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.backbone is not None
        self.img_size = config.image_size
        self.strides = config.backbone.strides
        self.backbone, channels = build_backbone(config.backbone)
        self.pyramid = Pyramid(config.backbone, channels, config.patch_size)
        self.neck = build_neck(config.backbone.width, config)
        _narrow(self, config.backbone)

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embedding of normalised, padded pixels."""
        if pixels.device.type == "cpu" and not torch.compiler.is_exporting():
            # what torch's CPU convolutions want: from channels first each of them reorders its maps, and back
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.neck(self.pyramid(self.backbone(pixels))).contiguous()

    def train(self, mode: bool = True) -> "TimmEncoder":
        """Batch norms keep the statistics of pretraining: those of a few views would be worse (as detectors do)."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Pyramid(nn.Module):
    """Maps of several strides, on one grid."""

    def __init__(self, backbone: BackboneConfig, channels: list[int], stride: int) -> None:
        """`channels` of the maps, `stride` of the grid."""
        super().__init__()
        self.laterals = nn.ModuleList(
            # a finer map comes by patches: nothing of it is left out
            nn.Conv2d(width, backbone.width, max(stride // each, 1), max(stride // each, 1))
            for width, each in zip(channels, backbone.strides, strict=True)
        )
        self.norm = LayerNorm2d(backbone.width)
        self.blocks = nn.Sequential(*(Refinement(backbone.width) for _ in range(backbone.refinements)))

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c g g"]:
        """The sum of what each map says, refined."""
        on_grid = [lateral(each) for lateral, each in zip(self.laterals, maps, strict=True)]
        size = max(each.shape[-1] for each in on_grid)
        total = sum(
            each if each.shape[-1] == size else F.interpolate(each, (size, size), mode="bilinear")
            for each in on_grid[1:]
        )
        return self.blocks(self.norm(on_grid[0] + total))


class Refinement(nn.Module):
    """A residual pair of 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        # a module, which quantization sees the bounds of
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """x and what its surroundings add."""
        return x + self.conv2(self.act(self.conv1(self.norm(x))))


def build_backbone(backbone: BackboneConfig) -> tuple[nn.Module, list[int]]:
    """timm's network up to its last wanted map, randomly initialised, and the channels of its maps.

    Raises:
        ModelError: a name that timm does not have, or has without maps of these strides.
    """
    if not timm.is_model(backbone.name):
        raise no_such_network(backbone.name)
    try:
        whole: Any = timm.create_model(backbone.name, features_only=True)
        found = whole.feature_info.reduction()
        indices = tuple(found.index(stride) for stride in backbone.strides)
        network: Any = timm.create_model(backbone.name, features_only=True, out_indices=indices)
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
        raise ModelError(
            f"timm gives out no maps of strides {', '.join(map(str, backbone.strides))} of {backbone.name}: "
            "choose another backbone."
        ) from error
    return network, network.feature_info.channels()


def is_narrowable(layer: nn.Module) -> bool:
    """Whether channels can be removed: of plain and depthwise convolutions, linear layers and batch norms."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
    return isinstance(layer, nn.Linear | nn.BatchNorm2d)


def narrowed_widths(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """`BackboneConfig.widths` of an encoder's weights: those of every layer that is not as wide as timm makes it."""
    assert config.backbone is not None
    with torch.device("meta"):
        whole = TimmEncoder(config.replace(backbone=replace(config.backbone, widths={})))
    widths = {}
    for name, layer in whole.named_modules():
        if is_narrowable(layer):
            sizes = tuple(state[f"{name}.weight"].shape[:2])
            if sizes != tuple(whole.get_parameter(f"{name}.weight").shape[:2]):
                widths[name] = sizes
    return widths


def _narrow(encoder: TimmEncoder, backbone: BackboneConfig) -> None:
    """Give layers the widths that pruning left, in place.

    Raises:
        ModelError: no such layer, or more channels than it has.
    """
    layers = {name: layer for name, layer in encoder.named_modules() if is_narrowable(layer)}
    for name, sizes in backbone.widths.items():
        layer = layers.get(name)
        now = () if layer is None else tuple(encoder.get_parameter(f"{name}.weight").shape[:2])
        if (
            layer is None
            or len(sizes) != len(now)
            or not all(isinstance(size, int) and 0 < size <= n for size, n in zip(sizes, now, strict=True))
        ):
            raise ModelError(
                f"config.json has {name} narrowed to {sizes}, where {backbone.name} has {now or 'no layer'}."
            )
        for kind, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            if value.ndim:
                kept = value.detach()[tuple(slice(size) for size in sizes[: value.ndim])].clone()
                setattr(layer, kind, nn.Parameter(kept) if isinstance(value, nn.Parameter) else kept)
        if isinstance(layer, nn.Conv2d):
            layer.out_channels = sizes[0]
            layer.groups = 1 if layer.groups == 1 else sizes[0]
            layer.in_channels = layer.groups * sizes[1]
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = sizes
        elif isinstance(layer, nn.BatchNorm2d):
            layer.num_features = sizes[0]


def no_such_network(name: str) -> ModelError:
    """That timm has no `name`, and what it has that is like it."""
    close = timm.list_models(f"*{name}*")[:3]
    hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()."
    return ModelError(f"timm has no network {name!r}: {hint}")


def take_pixels(
    encoder: TimmEncoder,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    config: ModelConfig,
) -> None:
    """Make a backbone that was trained on pixels of `mean` and `std` take those of `config`, in place.

    The difference goes into the first convolution and the batch norm behind it: the same function but for the pixels of
    a map's border, whose padding is another colour. Programs that know SAM alone normalise as SAM does.

    Raises:
        ModelError: no batch norm behind the first convolution.
    """
    names = [name for name, module in encoder.backbone.named_modules() if isinstance(module, nn.Conv2d)]
    norms = dict(_normalised(encoder))
    if names[0] not in norms:
        raise ModelError("this backbone's first convolution has no batch norm behind it: keep its own pixel_mean.")
    conv, norm = (encoder.backbone.get_submodule(name) for name in (names[0], norms[names[0]]))
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    weight = conv.weight.detach().double()
    own, given = torch.tensor([mean, std]).double(), torch.tensor([config.pixel_mean, config.pixel_std]).double()
    shift = (given[0] - own[0]) / own[1]
    norm.running_mean.sub_((weight.sum((2, 3)) @ shift).to(norm.running_mean))
    conv.weight.data.copy_(weight * (given[1] / own[1])[:, None, None])


def fold_batch_norms(encoder: TimmEncoder) -> None:
    """Multiply every batch norm of the backbone into the convolution before it, in place: the same function.

    Branches that a network has for training alone (RepViT, RepVGG) become one convolution first.
    """
    reparameterize_model(encoder.backbone, inplace=True)
    for conv, norm in list(_normalised(encoder)):
        module = encoder.backbone.get_submodule(norm)
        folded = encoder.backbone.get_submodule(conv)
        assert isinstance(module, nn.BatchNorm2d)
        assert isinstance(folded, nn.Conv2d)
        assert module.running_mean is not None
        assert module.running_var is not None
        folded.weight, folded.bias = fuse_conv_bn_weights(
            folded.weight,
            folded.bias,
            module.running_mean,
            module.running_var,
            module.eps,
            module.weight,
            module.bias,
        )
        parent, _, name = norm.rpartition(".")
        # timm's own has the activation behind it
        setattr(encoder.backbone.get_submodule(parent), name, getattr(module, "act", nn.Identity()))


def _normalised(encoder: TimmEncoder) -> Iterator[tuple[str, str]]:
    """Names of the backbone's convolutions whose output goes to a batch norm, and of those, as a picture shows it."""
    names = {module: name for name, module in encoder.backbone.named_modules()}
    pixels = torch.zeros(1, 3, encoder.img_size, encoder.img_size, device=next(encoder.parameters()).device)
    behind = takers(encoder.backbone, lambda: encoder.backbone(pixels), (nn.Conv2d, nn.BatchNorm2d))
    for module, users in behind.items():
        if isinstance(module, nn.Conv2d):
            yield from ((names[module], names[user]) for user in users if isinstance(user, nn.BatchNorm2d))


def padding_of(conv: nn.Conv2d, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What a convolution pads a map of `size`, height and width, with: left, right, top, bottom."""
    if isinstance(conv, Conv2dSame):
        return same_padding(conv.kernel_size, conv.stride, conv.dilation, size)
    high, wide = cast(tuple[int, int], conv.padding)
    return wide, wide, high, high


def same_padding(
    kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """What TensorFlow pads a map of `size` with, so that only the stride makes it smaller: left, right, top, bottom."""
    sides: list[int] = []
    for axis in (1, 0):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        steps = -(-size[axis] // stride[axis])
        total = max((steps - 1) * stride[axis] + reach - size[axis], 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]
