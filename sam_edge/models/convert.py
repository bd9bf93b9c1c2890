"""Our weights under other people's keys: what `sam_edge.models.keys` reads, read back before it is kept."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch

from sam_edge.errors import CheckpointError
from sam_edge.files import atomic_file, atomic_folder
from sam_edge.models.checkpoint import CONFIG, METADATA, save_tensors, state_to_store
from sam_edge.models.keys import State, recognise, renamed
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import WEIGHTS

WeightLayout = Literal["segment-anything", "transformers", "mobile-sam", "slimsam", "safetensors"]
ARCHES = {
    "segment-anything": ("vit", "slim_vit"),
    "transformers": ("vit", "slim_vit"),
    "mobile-sam": ("tiny_vit",),
    "slimsam": ("slim_vit",),
}
"""What each layout's names are for."""
TO_MOBILE_SAM = (
    (r"^image_encoder\.patch_embed\.conv1\.", "image_encoder.patch_embed.seq.0."),
    (r"^image_encoder\.patch_embed\.conv2\.", "image_encoder.patch_embed.seq.2."),
    (r"^(image_encoder\..+)\.conv\.", r"\1.c."),
    (r"^image_encoder\.stages\.", "image_encoder.layers."),
)
TO_HUGGING_FACE = (
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
     "shared_image_embedding.positional_embedding"),
    (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm([1-4])\.", r"\1.layer_norm\2."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
)  # fmt: skip
CLASSES = 1000
"""Of the classifier that MobileSAM's encoder has and does not use."""


def convert(model: EdgeSam, out: str | Path, layout: WeightLayout) -> Path:
    """Write a model's weights: a `.pth` of `segment-anything`'s, `mobile-sam`'s or `slimsam`'s keys, a folder of
    `transformers`' `SamModel`, or one `safetensors` file that is the whole model.

    Raises:
        CheckpointError: a model that these keys cannot say, or that would be read back as another.
        SamEdgeError: the disk refuses the write.
    """
    out = Path(out)
    if layout == "safetensors":
        if out.suffix != ".safetensors":
            raise CheckpointError(f"{out}: the file must end in .safetensors, by which it is known.")
        with atomic_file(out) as part:
            save_tensors(state_to_store(model), part, {METADATA: model.config.to_json()})
        return out
    state, config = _plain(model, layout)
    written = {
        "segment-anything": lambda: state,
        "slimsam": lambda: {re.sub(r"^image_encoder\.", "image_encoder.module.", k): v for k, v in state.items()},
        "mobile-sam": lambda: _to_mobile_sam(state),
        "transformers": lambda: _to_hugging_face(state),
    }[layout]()
    _read_back(written, state, config, layout)
    if layout == "transformers":
        with atomic_folder(out) as work:
            save_tensors(written, work / WEIGHTS, {"format": "pt"})
            (work / CONFIG).write_text(json.dumps(_hugging_face_config(config), indent=2) + "\n")
        return out
    if out.suffix not in (".pth", ".pt"):
        raise CheckpointError(f"{out}: the file must end in .pth or .pt, by which it is known.")
    with atomic_file(out) as part:
        torch.save(written, part)
    return out


def _plain(model: EdgeSam, layout: str) -> tuple[State, ModelConfig]:
    """Weights and config in the form that a layout has names for; q, k and v in one where it wants them so."""
    config = model.config
    if config.quantization is not None:
        raise CheckpointError(f"layout {layout} has no form for integers: give the float checkpoint, or safetensors.")
    if config.arch not in ARCHES[layout]:
        fitting = " or ".join(name for name, arches in ARCHES.items() if config.arch in arches)
        raise CheckpointError(f"layout {layout} has no names for a {config.arch}: choose {fitting} or safetensors.")
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if config.arch == "slim_vit" and layout != "slimsam":
        width = config.blocks[0].embed
        uneven = next((i for i, b in enumerate(config.blocks) if not b.uniform or b.embed != width), None)
        if uneven is not None:
            raise CheckpointError(
                f"layout {layout} needs q, k and v as wide as the embedding in every block, block {uneven}'s are not: "
                "choose slimsam or safetensors."
            )
        state, config = _fused(state), config.replace(arch="vit")
    return state, config


def _fused(state: State) -> State:
    """q, k and v of every block as one product."""
    fused = {}
    for name, value in state.items():
        match = re.match(r"^(image_encoder\.blocks\.\d+\.attn\.)([qkv])\.(weight|bias)$", name)
        if match is None:
            fused[name] = value
        elif match[2] == "q":
            fused[f"{match[1]}qkv.{match[3]}"] = torch.cat([state[f"{match[1]}{part}.{match[3]}"] for part in "qkv"])
    return fused


def _to_mobile_sam(state: State) -> State:
    written = {}
    for name, value in state.items():
        # MobileSAM merges patches at a stage's end, timm at the next one's start
        moved = re.sub(
            r"^image_encoder\.stages\.(\d+)\.downsample\.",
            lambda match: f"image_encoder.layers.{int(match[1]) - 1}.downsample.",
            name,
        )
        written[renamed(moved, TO_MOBILE_SAM)] = value
    width = state["image_encoder.neck.0.weight"].shape[1]
    # a strict reader asks for the classifier that nobody uses
    head = {"norm_head.weight": (width,), "norm_head.bias": (width,), "head.weight": (CLASSES, width)}
    for name, shape in {**head, "head.bias": (CLASSES,)}.items():
        written[f"image_encoder.{name}"] = torch.ones(shape) if name == "norm_head.weight" else torch.zeros(shape)
    return written


def _to_hugging_face(state: State) -> State:
    return {renamed(_named_mlp(name, state), TO_HUGGING_FACE): value for name, value in state.items()}


def _named_mlp(name: str, state: State) -> str:
    """segment-anything's numbered layers of small MLPs as Hugging Face's `proj_in`, `layers.N` and `proj_out`."""
    match = re.match(r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.(\d+)\.", name)
    if match is None:
        return name
    stem, number = match[1], int(match[2])
    last = max(int(k.split(".")[-2]) for k in state if k.startswith(f"{stem}.layers."))
    part = "proj_in" if number == 0 else "proj_out" if number == last else f"layers.{number - 1}"
    return f"{stem}.{part}.{name[match.end() :]}"


def _read_back(written: State, state: State, config: ModelConfig, layout: str) -> None:
    """Raises CheckpointError unless these keys are read as the very model that they were written of."""
    again, found = recognise(written)
    for name in ("arch", "image_size", "patch_size", "blocks", "stages", "decoder", "neck", "projection"):
        wanted, got = getattr(config, name), getattr(found, name)
        if wanted != got:
            raise CheckpointError(
                f"layout {layout} cannot say this model's {name}, which others would take for another's: "
                "choose safetensors, or a checkpoint folder."
            )
    if again.keys() != state.keys() or not all(torch.equal(value, again[name]) for name, value in state.items()):
        raise CheckpointError(f"layout {layout} does not hold all of this model's weights: choose safetensors.")


def _hugging_face_config(config: ModelConfig) -> dict[str, Any]:
    block, window = config.blocks[0], max(block.window for block in config.blocks)
    decoder = config.decoder
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "hidden_size": block.embed,
            "output_channels": decoder.dim,
            "num_hidden_layers": len(config.blocks),
            "num_attention_heads": block.heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "mlp_dim": block.mlp,
            "mlp_ratio": block.mlp / block.embed,
            "qkv_bias": True,
            "use_abs_pos": True,
            "use_rel_pos": block.rel_pos,
            "window_size": window,
            "global_attn_indexes": [index for index, block in enumerate(config.blocks) if not block.window],
            "num_pos_feats": decoder.dim // 2,
        },
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder_model",
            "hidden_size": decoder.dim,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "mask_input_channels": decoder.mask_channels,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder_model",
            "hidden_size": decoder.dim,
            "mlp_dim": decoder.mlp,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "iou_head_hidden_dim": decoder.iou_hidden,
        },
    }
