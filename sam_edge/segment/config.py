"""What a SAM is made of, as data: `config.json` of a checkpoint folder.

Widths are channels, sizes are pixels, windows are tokens per side (0 means global attention).
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sam_edge.errors import CheckpointError, ModelError
from sam_edge.files import date, parse_json

SCHEMA = 1
LARGEST = 65536
"""Largest of a model's counts and sizes: more than any has, and few enough to be refused before memory runs out."""
DEEPEST = 256
"""Most layers of a kind."""
Arch = Literal["vit", "slim_vit", "tiny_vit", "timm"]
Coverage = Literal["logit", "contrast"]
COVERAGES: tuple[Coverage, ...] = ("logit", "contrast")


@dataclass(frozen=True)
class BlockConfig:
    """One transformer block of a ViT encoder."""

    embed: int
    """Width of the residual stream."""
    qk: int
    """Width of the query and key projections, all heads together."""
    v: int
    """Width of the value projection, all heads together."""
    mlp: int
    """Hidden width of the MLP."""
    heads: int
    """Attention heads; divides `qk` and `v`."""
    window: int
    """Window side in tokens; 0 attends globally."""
    rel_pos: bool = True
    """Whether the block carries decomposed relative positions."""

    @property
    def uniform(self) -> bool:
        """True when segment-anything's own fused block can express it."""
        return self.qk == self.v == self.embed


@dataclass(frozen=True)
class StageConfig:
    """One stage of a TinyViT encoder; the first is made of MBConv blocks and has no heads."""

    embed: int
    """Width of the stage."""
    depth: int
    """Blocks in the stage."""
    heads: int
    """Attention heads; 0 in the convolutional first stage."""
    window: int
    """Window side in tokens; 0 in the convolutional first stage."""
    stride: int
    """Down-sampling at the stage's entry: 1 or 2."""
    qk: tuple[int, ...] = ()
    """Per block, width of q and of k, all heads together; empty where all are `embed`."""
    v: tuple[int, ...] = ()
    """Per block, width of v, all heads together; empty where all are `embed`."""
    mlp: tuple[int, ...] = ()
    """Per block, hidden width of the MLP or the MBConv; empty where all are 4 x `embed`."""

    @property
    def qk_widths(self) -> tuple[int, ...]:
        """`qk`, written out."""
        return self.qk or (self.embed,) * self.depth

    @property
    def v_widths(self) -> tuple[int, ...]:
        """`v`, written out."""
        return self.v or (self.embed,) * self.depth

    @property
    def mlp_widths(self) -> tuple[int, ...]:
        """`mlp`, written out."""
        return self.mlp or (4 * self.embed,) * self.depth


@dataclass(frozen=True)
class BackboneConfig:
    """A convolutional network of timm's and the pyramid that brings its maps to the decoder's grid."""

    name: str
    """timm's name of it."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Strides of the maps that are used, ascending."""
    width: int = 128
    """Channels of the pyramid."""
    refinements: int = 1
    """Residual pairs of convolutions on the sum of the maps."""
    widths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """What pruning left of the encoder's layers, by name, where it is not what timm makes: channels out and in of
    convolutions (in of each group) and linear layers, channels of batch norms."""


@dataclass(frozen=True)
class DecoderConfig:
    """The prompt encoder and the two-way mask decoder."""

    dim: int = 256
    """Width of image embedding, prompt embedding and decoder tokens."""
    depth: int = 2
    """Two-way attention blocks."""
    heads: int = 8
    """Attention heads."""
    mlp: int = 2048
    """Hidden width of the decoder's MLPs."""
    mask_channels: int = 16
    """Hidden channels of the mask prompt's down-scaling."""
    iou_hidden: int = 256
    """Hidden width of the head that predicts IoU."""
    draws_boxes: bool = False
    """Whether a box is also given as a mask prompt, drawn from its corners."""
    draws_points: bool = False
    """Whether a first point of the foreground is, too, drawn as a box of a few pixels."""


@dataclass(frozen=True)
class Thresholds:
    """What everything mode filters with; they belong to the model."""

    pred_iou: float = 0.88
    """Smallest predicted IoU kept."""
    stability: float = 0.95
    """Smallest stability score kept."""
    tau: float | None = None
    """Confidence above which hierarchical everything mode takes a point as answered; None until calibrated."""
    coverage: Coverage = "logit"
    """What tau is compared with: a mask's `logit`, or that of a large mask less its surroundings' `contrast`."""
    nested: float = 1.0
    """Largest share of a mask that may lie in a whole of no smaller predicted IoU, which is a mask up to eight times as
    large; at 1, any may."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build a model and to use it, but for its weights."""

    arch: Arch
    """`vit` (segment-anything's own blocks), `slim_vit` (split q, k, v of any width), `tiny_vit`, or `timm`."""
    image_size: int
    """Side of the square input, in pixels."""
    blocks: tuple[BlockConfig, ...] = ()
    """The ViT's blocks, in order; only of the ViTs."""
    stages: tuple[StageConfig, ...] = ()
    """TinyViT's stages; only of `tiny_vit`."""
    backbone: BackboneConfig | None = None
    """The network of a `timm` encoder; only of those."""
    patch_size: int = 16
    """Pixels per token side."""
    decoder: DecoderConfig = DecoderConfig()
    """Prompt encoder and mask decoder."""
    neck: int = 0
    """Channels inside the encoder's neck, where they are not the decoder's; 0 where they are."""
    projection: bool = False
    """Whether the neck ends in `neck` channels too and a 1 x 1 convolution follows it, rather than its own last one."""
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Subtracted from RGB values in 0..255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Divides RGB values after the mean is subtracted."""
    thresholds: Thresholds = Thresholds()
    """Everything mode's filters."""
    quantization: dict[str, dict[str, Any]] | None = None
    """Per quantized layer: bits, activation_bits, scale, zero_point, axis, split; None for a float model."""
    lineage: tuple[dict[str, Any], ...] = field(default=())
    """What was done to the model, oldest first: step, settings, seed, parent_sha256, data, date."""
    schema: int = SCHEMA
    """Version of this layout."""

    def __post_init__(self) -> None:
        self._check_sizes()
        if self.image_size % self.patch_size:
            raise ModelError(f"image_size must be a multiple of patch_size ({self.patch_size}), got {self.image_size}.")
        described = {"tiny_vit": "stages", "timm": "backbone"}.get(self.arch, "blocks")
        if [name for name in ("blocks", "stages", "backbone") if getattr(self, name)] != [described]:
            raise ModelError(
                "a ViT is described by blocks, a tiny_vit by stages, a timm by a backbone: config.json has them mixed."
            )
        if self.backbone is not None:
            self._check_strides(self.backbone)
        if self.projection and not self.neck:
            raise ModelError("a projection goes from the neck's own channels: set neck.")
        for index, block in enumerate(self.blocks):
            if block.qk % block.heads or block.v % block.heads:
                raise ModelError(f"block {index}: {block.heads} heads must divide qk {block.qk} and v {block.v}.")
            if self.arch == "vit" and not (block.uniform and block.embed == self.blocks[0].embed):
                raise ModelError(f"block {index}: arch 'vit' needs embed = qk = v; use 'slim_vit'.")

    def _check_sizes(self) -> None:
        """Raises ModelError for a count or size that nothing can be built of."""
        decoder, backbone = self.decoder, self.backbone
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size, "decoder.depth": decoder.depth}
        sizes |= {f"decoder.{name}": getattr(decoder, name) for name in ("dim", "heads", "mlp", "iou_hidden")}
        sizes["decoder.mask_channels"] = decoder.mask_channels
        depths = {"blocks": len(self.blocks), "decoder.depth": decoder.depth}
        for index, block in enumerate(self.blocks):
            sizes |= {f"blocks[{index}].{name}": getattr(block, name) for name in ("embed", "qk", "v", "mlp", "heads")}
        for index, stage in enumerate(self.stages):
            widths = (*stage.qk_widths, *stage.v_widths, *stage.mlp_widths)
            sizes |= {f"stages[{index}].{name}": getattr(stage, name) for name in ("embed", "depth", "stride")}
            sizes[f"stages[{index}]'s narrowest width"] = min(widths, default=1)
            depths[f"stages[{index}].depth"] = stage.depth
        if backbone is not None:
            sizes |= {"backbone.width": backbone.width, "backbone's first stride": min(backbone.strides, default=0)}
            depths["backbone.refinements"] = backbone.refinements
        for name, size in sizes.items():
            if size < 1:
                raise ModelError(f"{name} must be at least 1, got {size}.")
        for name, depth in depths.items():
            if depth > DEEPEST:
                raise ModelError(f"{name} must be at most {DEEPEST}, got {depth}.")
        if decoder.dim % (2 * decoder.heads) or decoder.dim % 8 or decoder.mask_channels % 4:
            raise ModelError(
                f"the decoder's dim must be divided by 8 and by twice its heads, its mask_channels by 4, got "
                f"{decoder.dim}, {decoder.heads} and {decoder.mask_channels}."
            )
        if min(self.pixel_std) <= 0:
            raise ModelError(f"pixel_std must be positive, got {self.pixel_std}.")

    def _check_strides(self, backbone: BackboneConfig) -> None:
        strides = backbone.strides
        if list(strides) != sorted(set(strides)) or len(strides) < 2:
            raise ModelError(f"a backbone gives two or more maps, of ascending strides, got {strides}.")
        if not strides[0] <= self.patch_size <= strides[-1] or self.image_size % strides[-1]:
            raise ModelError(
                f"strides from {strides[0]} to {strides[-1]} need a patch_size between them and an image_size that "
                f"{strides[-1]} divides, got {self.patch_size} and {self.image_size}."
            )

    @property
    def grid(self) -> int:
        """Tokens per side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits, in cells."""
        return 4 * self.grid

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_step(self, step: dict[str, Any]) -> "ModelConfig":
        """A copy whose lineage ends with `step`, dated now (UTC)."""
        return self.replace(lineage=(*self.lineage, {**step, "date": date()}))

    def to_json(self) -> str:
        """The text of `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """The config that `dataclasses.asdict` described; unknown keys are refused.

        Raises:
            CheckpointError: an unknown schema or key, or a missing one.
        """
        values = dict(values)
        if values.get("schema") != SCHEMA:
            raise CheckpointError(
                f"config schema {values.get('schema')!r} is not {SCHEMA}: written by another version of sam-edge."
            )
        try:
            found: ModelConfig = _read(cls, values, "")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"config.json does not describe a model: {error}.") from error
        return found

    @classmethod
    def read(cls, path: Path) -> "ModelConfig":
        """Read `config.json`.

        Raises:
            CheckpointError: missing, not JSON, or not a model's config.
        """
        try:
            values = parse_json(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is not a model's config.json: {error}.") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is not a model's config.json: it holds no object.")
        return cls.from_dict(values)


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as what a field is annotated with: a dataclass of such fields, tuples for lists.

    Raises ValueError or TypeError, with the place, for another kind of value, or a number that no model has.
    """
    origin, parts = get_origin(kind), get_args(kind)
    # is_dataclass would have `kind` taken for an instance
    make = kind
    if origin in (Union, UnionType):
        return None if value is None else _read(parts[0], value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        inner = {name: _read(kinds.get(name, Any), part, f"{where}.{name}".strip(".")) for name, part in value.items()}
        return make(**inner)
    if origin is tuple and isinstance(value, list):
        if parts[-1] is not ... and len(parts) != len(value):
            raise ValueError(f"{where} must have {len(parts)} values, got {len(value)}")
        return tuple(_read(parts[0], part, f"{where}[{place}]") for place, part in enumerate(value))
    if origin is dict and get_origin(parts[-1]) is tuple and isinstance(value, dict):
        return {str(key): _read(parts[-1], part, f"{where}.{key}") for key, part in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return value
    if kind is int and type(value) is int and 0 <= value <= LARGEST:
        return value
    if origin is Literal and isinstance(value, str) and value in parts:
        return value
    if kind is Any or (kind in (str, bool) and type(value) is kind) or (origin is dict and isinstance(value, dict)):
        return value
    wanted = " or ".join(map(repr, parts)) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where or 'it'} must be {wanted}{f' up to {LARGEST}' if kind is int else ''}, got {value!r:.60}")


def uniform_blocks(
    depth: int, embed: int, heads: int, global_at: tuple[int, ...], *, window: int, mlp: int | None = None
) -> tuple[BlockConfig, ...]:
    """Blocks of one width, windowed but for those at `global_at`."""
    return tuple(
        BlockConfig(embed, embed, embed, mlp or 4 * embed, heads, 0 if index in global_at else window)
        for index in range(depth)
    )
