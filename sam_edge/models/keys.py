"""Other people's state dicts, brought under our names, and the config that their shapes imply.

Our names are segment-anything's (`image_encoder.*`, `prompt_encoder.*`, `mask_decoder.*`), with `q`, `k` and
`v` apart in a `slim_vit` and timm's names inside a `tiny_vit`. What weights do not say is taken as their
authors have it: 8 heads in the decoder, SAM's pixel statistics, and the sizes of `TINY_VIT_SIZES`.
"""

import math
import re
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from sam_edge.errors import CheckpointError
from sam_edge.segment.config import Arch, BlockConfig, DecoderConfig, ModelConfig, StageConfig

State = dict[str, Tensor]

PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
"""How the names of a SAM's three parts begin."""
DECODER_PARTS = PARTS[1:]

LAYOUTS = (
    "segment-anything (vit_b, vit_l, vit_h)",
    "MobileSAM and TinySAM (vit_t)",
    "SlimSAM (split q, k, v)",
    "Hugging Face SamModel",
    "sam-edge's own",
)
"""What `recognise` knows, in words."""

TINY_VIT_SIZES = {7: 1024, 8: 256, 12: 384, 16: 512}
"""Pixels of a TinyViT by the window of its last stage, as its tables of biases have it, where the one before has twice
that. Its authors make windows of the grids that an image leaves; MobileSAM and TinySAM keep those of 224 at 1024."""

_WRAPPERS = {"module", "_orig_mod"}
"""What DataParallel and torch.compile put into names; the SlimSAM authors save `image_encoder.module.*`.

Their names are ours otherwise, and after each pruning they set the attention scale to the new head width, as
`SplitAttention` does: there is nothing to fold into the weights.
"""

_OWNERS = re.compile(r"^(?:sam|model)\.")
"""What programs that have a SAM as a part put before its names."""

_BARE_ENCODER = re.compile(r"^(?:pos_embed$|patch_embed\.|blocks\.|layers\.|stages\.|neck\.|head\.|norm_head\.)")
"""Names of an encoder that was saved on its own, `model.image_encoder.state_dict()`."""

_NOT_WEIGHTS = re.compile(r"pixel_mean$|pixel_std$|\.attention_bias_idxs$|^image_encoder\.(head|norm_head)\.")
"""Constants, index tables, and the classifier that MobileSAM carries along without using it."""

_OTHERS = (
    (re.compile(r"^(?:sam3_model|sam2_predictor|detector(?:_model)?|tracker(?:_model)?)\."), "SAM 3"),
    (re.compile(r"^(?:memory_attention|memory_encoder|sam_mask_decoder|image_encoder\.trunk|vision_encoder\.backbone)\."),
     "SAM 2"),
)  # fmt: skip
"""Names that only the later generations have, as their authors and Hugging Face save them."""

_MOBILE_SAM = (
    (r"^image_encoder\.patch_embed\.seq\.0\.", "image_encoder.patch_embed.conv1."),
    (r"^image_encoder\.patch_embed\.seq\.2\.", "image_encoder.patch_embed.conv2."),
    (r"^(image_encoder\..+)\.c\.", r"\1.conv."),
    (r"^image_encoder\.layers\.", "image_encoder.stages."),
)

_MLP = r"(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))"
_HUGGING_FACE = (
    (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
     "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm([12])\.", r"image_encoder.blocks.\1.norm\2."),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm([1-4])\.", r"\1.norm\2."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
)  # fmt: skip


def recognise(state: State) -> tuple[State, ModelConfig]:
    """The same tensors under our names, and the config of the model they fit.

    Raises:
        CheckpointError: an unknown layout, or a tensor missing that the config is read from.
    """
    native = native_names(state)
    try:
        config = _config(native, state).replace(**pixel_statistics(state))
        return _with_tables_of_the_grid(native, config), config
    except KeyError as error:
        if not any(name.startswith(DECODER_PARTS) for name in native):
            raise CheckpointError(
                "the checkpoint holds an image encoder without a decoder: join it with its teacher's by "
                "`sam-edge convert FILE --base SAM --layout safetensors --out whole.safetensors`."
            ) from error
        raise CheckpointError(
            f"the checkpoint has no {error.args[0]}: it holds only a part of a SAM; give a whole one, or let "
            "`sam-edge convert FILE --base SAM` take whole parts that it lacks from another."
        ) from error


def native_names(state: State) -> State:
    """The same tensors under our names, of a whole SAM or of some of its parts; without constants and classifiers."""
    unwrapped = {_unwrapped(name): value for name, value in state.items()}
    # other vision transformers have blocks and patches too, but no neck
    if "neck.0.weight" in unwrapped:
        unwrapped = {f"image_encoder.{name}" if _BARE_ENCODER.match(name) else name: v for name, v in unwrapped.items()}
    native = {name: value for name, value in unwrapped.items() if not _NOT_WEIGHTS.search(name)}
    if any(name.startswith(("vision_encoder.", "mask_decoder.upscale_conv1.")) for name in native):
        return _from_hugging_face(native)
    if "image_encoder.patch_embed.seq.0.c.weight" in native:
        return _from_mobile_sam(native)
    return native


def _config(native: State, given: State) -> ModelConfig:
    if "image_encoder.blocks.0.attn.qkv.weight" in native:
        return _vit_config(native, "vit")
    if "image_encoder.blocks.0.attn.q.weight" in native:
        return _vit_config(native, "slim_vit")
    if "image_encoder.patch_embed.conv1.conv.weight" in native:
        return _tiny_vit_config(native)
    for theirs, generation in _OTHERS:
        if any(theirs.match(_unwrapped(name)) for name in given):
            raise CheckpointError(
                f"this is a {generation} checkpoint, of another architecture: give one of the first SAM."
            )
    names = ", ".join(list(given)[:3]) or "no tensors"
    raise CheckpointError(f"unknown checkpoint layout ({names}, ...): known are {'; '.join(LAYOUTS)}.")


def pixel_statistics(state: State) -> dict[str, tuple[float, ...]]:
    """The mean and deviation of pixels, of checkpoints that say them."""
    found: dict[str, tuple[float, ...]] = {}
    for name, value in state.items():
        key = _unwrapped(name)
        if key in ("pixel_mean", "pixel_std"):
            numbers = tuple(float(number) for number in value.flatten())
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or (key == "pixel_std" and min(numbers) <= 0):
                raise CheckpointError(f"the checkpoint's {key} is {numbers}, not three numbers of colours.")
            found[key] = numbers
    return found


def _vit_config(state: State, arch: Arch) -> ModelConfig:
    """Read a ViT off its shapes; a head's width is the relative position tables' width."""
    patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
    grid = state["image_encoder.pos_embed"].shape[1]
    depth = _count(state, r"^image_encoder\.blocks\.(\d+)\.")
    blocks = [_block_config(state, index) for index in range(depth)]
    whole = _side_of_global_tables({block.window for block in blocks}, grid)
    return ModelConfig(
        arch=arch,
        image_size=grid * patch,
        patch_size=patch,
        blocks=tuple(replace(block, window=0) if block.window == whole else block for block in blocks),
        decoder=_decoder_config(state),
    )


def _side_of_global_tables(sides: set[int], grid: int) -> int:
    """Of the token grids that tables of relative positions are for, the one of blocks that attend globally.

    segment-anything brings a global block's table to the grid as it runs, so that a network made smaller may keep the
    large one in its file: larger than the grid, and than the window that its other blocks share. A window alone that is
    larger than the grid is a window, which it pads the grid to.
    """
    return max(sides) if grid not in sides and len(sides) > 1 and max(sides) > grid else grid


def _with_tables_of_the_grid(state: State, config: ModelConfig) -> State:
    """Global blocks' tables as segment-anything interpolates them (`get_rel_pos`)."""
    rows, fitted = 2 * config.grid - 1, dict(state)
    for index, block in enumerate(config.blocks):
        for axis in "hw" if not block.window and block.rel_pos else "":
            name = f"image_encoder.blocks.{index}.attn.rel_pos_{axis}"
            if len(state[name]) != rows:
                fitted[name] = F.interpolate(state[name].float().T[None], rows, mode="linear")[0].T.contiguous()
    return fitted


def _block_config(state: State, index: int) -> BlockConfig:
    """A block, with the grid that its tables are for as its window."""
    stem = f"image_encoder.blocks.{index}."
    embed = state[f"{stem}norm1.weight"].shape[0]
    mlp = state[f"{stem}mlp.lin1.weight"].shape[0]
    qk = v = embed
    if f"{stem}attn.q.weight" in state:
        qk, v = state[f"{stem}attn.q.weight"].shape[0], state[f"{stem}attn.v.weight"].shape[0]
    if f"{stem}attn.rel_pos_h" not in state:
        raise CheckpointError(
            f"block {index} has no relative positions, so the weights do not tell its heads and window: "
            "give the checkpoint folder, which has a config.json, instead of the file."
        )
    rows, head_width = state[f"{stem}attn.rel_pos_h"].shape
    return BlockConfig(embed, qk, v, mlp, heads=qk // head_width, window=(rows + 1) // 2)


def _tiny_vit_config(state: State) -> ModelConfig:
    count = _count(state, r"^image_encoder\.stages\.(\d+)\.")
    stages = tuple(_stage_config(state, index, count) for index in range(count))
    patch = 4 * math.prod(stage.stride for stage in stages)
    return ModelConfig(
        arch="tiny_vit",
        image_size=_tiny_vit_size(stages),
        patch_size=patch,
        stages=stages,
        decoder=_decoder_config(state),
    )


def _tiny_vit_size(stages: tuple[StageConfig, ...]) -> int:
    """Image side in pixels, which leaves no trace in shapes but for the windows that were chosen for it."""
    *_, before, last = (stage.window for stage in stages)
    if before != 2 * last or last not in TINY_VIT_SIZES:
        raise CheckpointError(
            f"a TinyViT with windows of {[stage.window for stage in stages[1:]]} tokens is none of its authors' or of "
            "MobileSAM's, so the weights do not tell its image size: give the checkpoint folder, which has a "
            "config.json, instead of the file."
        )
    return TINY_VIT_SIZES[last]


def _stage_config(state: State, index: int, count: int) -> StageConfig:
    stem = f"image_encoder.stages.{index}."
    depth = _count(state, rf"^image_encoder\.stages\.{index}\.blocks\.(\d+)\.")
    if index == 0:
        embed = state["image_encoder.patch_embed.conv2.conv.weight"].shape[0]
        return StageConfig(embed, depth, heads=0, window=0, stride=1)
    embed = state[f"{stem}downsample.conv3.conv.weight"].shape[0]
    heads, offsets = state[f"{stem}blocks.0.attn.attention_biases"].shape
    # a stride leaves no trace in shapes: in all of MobileSAM's sizes every stage halves but the last
    stride = 1 if index == count - 1 else 2
    return StageConfig(embed, depth, heads, window=math.isqrt(offsets), stride=stride)


def _decoder_config(state: State) -> DecoderConfig:
    return DecoderConfig(
        dim=state["mask_decoder.iou_token.weight"].shape[1],
        depth=_count(state, r"^mask_decoder\.transformer\.layers\.(\d+)\."),
        mlp=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        iou_hidden=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )


def _count(state: State, pattern: str) -> int:
    """How many modules of a numbered list the state has."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _unwrapped(name: str) -> str:
    plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while _OWNERS.match(plain):
        plain = _OWNERS.sub("", plain)
    return plain


def _from_mobile_sam(state: State) -> State:
    native = {}
    for name, value in state.items():
        # MobileSAM merges patches at a stage's end, timm at the next one's start
        moved = re.sub(
            r"^image_encoder\.layers\.(\d+)\.downsample\.",
            lambda match: f"image_encoder.stages.{int(match[1]) + 1}.downsample.",
            name,
        )
        native[renamed(moved, _MOBILE_SAM)] = value
    return native


def _from_hugging_face(state: State) -> State:
    native = {}
    for name, value in state.items():
        native[renamed(_numbered_mlp(name, state), _HUGGING_FACE)] = value
    return native


def _numbered_mlp(name: str, state: State) -> str:
    """`proj_in`, `layers.N`, `proj_out` of Hugging Face's MLPs as segment-anything's one list of layers."""
    match = re.match(rf"^{_MLP}\.(proj_in|proj_out|layers\.(\d+))\.", name)
    if match is None:
        return name
    stem, part, inner = match.groups()
    if part == "proj_in":
        number = 0
    elif part == "proj_out":
        number = 1 + _count(state, rf"^{re.escape(stem)}\.layers\.(\d+)\.")
    else:
        number = 1 + int(inner)
    return f"{stem}.layers.{number}.{name[match.end() :]}"


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """A name after all the rules, in their order: what matches a pattern, and what replaces it."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
