"""The files that other people's tools open: names, order, types and shapes, read from each tool's own loader.

A layout is a row of `LAYOUTS`; `sam_edge.export.adapters` makes the graphs of a row out of an exported folder's, and
`sam_edge.export.layout_client` asks them as the tool does.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sam_edge.errors import ExportError
from sam_edge.segment.config import ModelConfig

Pixels = Literal["normalised", "rows", "planes"]
Masks = Literal["all", "best", "three"]

SAM_SIDE, SAM_MASK, SAM_EMBEDDING = 1024, 256, (256, 64, 64)
"""The frame and the mask prompt's side in pixels, and the embedding, that tools take for granted."""
ANY_LABELING_SIZE, CPP_SIZE = (684, 1024), (720, 1024)
"""Height and width to which AnyLabeling fits a picture, and to which the C++ wrapper stretches one by default."""
POINTS = {"embeddings": "image_embeddings", "coords": "point_coords", "labels": "point_labels"}
FIVE = {**POINTS, "mask": "mask_input", "has_mask": "has_mask_input"}
SIX = {**FIVE, "size": "orig_im_size"}
"""Inputs of segment-anything's own decoder (`segment_anything/utils/onnx.py`)."""
THREE = {"masks": "masks", "iou": "iou_predictions", "low_res": "low_res_masks"}
"""Its outputs."""


@dataclass(frozen=True)
class Layout:
    """What a tool opens."""

    opened_by: str
    """The tools, for people."""
    side: int | None
    """Side in pixels of the square that pixels and coordinates are about; None is the model's own."""
    pixels: Pixels
    """What the encoder is handed: 1 x 3 x side x side, `normalised` and padded; or raw RGB in 0..255, as `rows` (height
    x width x 3 float32 of any size) or `planes` (1 x 3 x 720 x 1024 uint8)."""
    image: str
    """Name of the encoder's input."""
    embeddings: str = "image_embeddings"
    """Name of its output."""
    positions: str | None = None
    """Name of its second output, the decoder's positional embedding, where it has one."""
    embedding: tuple[int, int, int] | None = None
    """Channels, height and width of an embedding, where the tool has them hard-coded."""
    inputs: Mapping[str, str] = field(default_factory=lambda: SIX)
    """The decoder's inputs in order: what each is, and its name."""
    outputs: Mapping[str, str] = field(default_factory=lambda: THREE)
    """The decoder's outputs in order. `masks` have the picture's size, `square` ones the frame's, `cropped` ones that
    of their box, whose first and last pixels are `left`, `top`, `right` and `bottom`."""
    masks: Masks = "best"
    """Which of a set's four masks: `all`, the `three` of an ambiguous prompt, or the `best`: of a single point the one
    of these three that is predicted best, else the first, as the predictor has it."""
    mask_side: int | None = SAM_MASK
    """Side of mask prompts and low-resolution masks; None is the model's own."""
    engines: bool = False
    """Whether the tool builds TensorRT engines of the graphs."""
    folder: str = ""
    """Where the graphs lie, with a slash behind it."""
    files: tuple[str, str] = ("encoder", "decoder")
    """Names of the graphs' files."""
    suffixes: Mapping[str, str] = field(default_factory=dict)
    """What follows these names, by precision."""
    config_files: Callable[[str, "Layout", ModelConfig, str], dict[str, str]] = lambda *_: {}
    """Name, layout, config and precision of the model to the files that the tool reads beside the graphs."""

    @property
    def batched(self) -> bool:
        """Whether the decoder takes B images x N sets, as ours does, rather than one of each."""
        return self.masks == "three"

    def graph_files(self, precision: str) -> tuple[str, str]:
        """The encoder's and the decoder's files, relative to the folder."""
        suffix = self.suffixes.get(precision, "")
        encoder, decoder = (f"{self.folder}{name}{suffix}.onnx" for name in self.files)
        return encoder, decoder

    def require(self, name: str, config: ModelConfig, dialect: str | None) -> None:
        """Refuse a model that cannot be adapted without loss.

        Raises:
            ExportError: a larger embedding or mask prompt than the tool's, other pixel statistics than it normalises
                with, or integers that it cannot read.
        """
        default = ModelConfig.__dataclass_fields__
        wanted = {key: default[key].default for key in ("pixel_mean", "pixel_std")}
        if self.pixels == "normalised" and name != "transformers":
            for key, value in wanted.items():
                own = getattr(config, key)
                if own != value:
                    raise ExportError(f"layout {name}: the tool normalises with {key} {value}, the model needs {own}.")
        shape = (config.decoder.dim, config.grid, config.grid)
        if self.embedding is not None and any(a > b for a, b in zip(shape, self.embedding, strict=True)):
            raise ExportError(
                f"layout {name}: the tool takes embeddings of at most {_times(self.embedding)}, "
                f"the model's are {_times(shape)}."
            )
        if self.mask_side is not None and config.mask_size > self.mask_side:
            raise ExportError(
                f"layout {name}: the tool takes masks of {self.mask_side} px, which the model's {config.mask_size} px "
                "do not fit in."
            )
        if self.engines and dialect == "cpu":
            raise ExportError(
                "layout nanosam: TensorRT, which NanoSAM builds engines with, refuses the cpu dialect of int8: "
                "export the checkpoint with --dialect tensorrt."
            )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _any_labeling_config(name: str, layout: Layout, config: ModelConfig, precision: str) -> dict[str, str]:
    """`config.yaml` of AnyLabeling and X-AnyLabeling; JSON's strings are YAML's too."""
    encoder, decoder = layout.graph_files(precision)
    height, width = ANY_LABELING_SIZE
    values = {
        "type": "segment_anything",
        # X-AnyLabeling refuses others
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", name),
        "display_name": name,
        "encoder_model_path": encoder,
        "decoder_model_path": decoder,
        "input_size": SAM_SIDE,
        "max_width": width,
        "max_height": height,
    }
    return {"config.yaml": "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())}


def _darktable_config(name: str, layout: Layout, config: ModelConfig, precision: str) -> dict[str, str]:
    """The description by which darktable finds a model; `sam2` is what it calls every SAM with mask prompts."""
    values = {
        "id": f"mask-object-{name}",
        "name": f"mask {name}",
        "description": f"Segment Anything model {name}, for masking",
        "task": "mask",
        "arch": "sam2",
        "backend": "onnx",
        "version": "1.0",
        "tiling": False,
    }
    return {"config.json": json.dumps(values, indent=2) + "\n"}


def _transformers_config(name: str, layout: Layout, config: ModelConfig, precision: str) -> dict[str, str]:
    """`config.json` and `preprocessor_config.json`, as far as processors and transformers.js read them."""
    processor = {
        "processor_class": "SamProcessor",
        "image_processor_type": "SamImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [value / 255 for value in config.pixel_mean],
        "image_std": [value / 255 for value in config.pixel_std],
        "size": {"longest_edge": config.image_size},
        "pad_size": {"height": config.image_size, "width": config.image_size},
        "mask_size": {"longest_edge": config.mask_size},
        "mask_pad_size": {"height": config.mask_size, "width": config.mask_size},
    }
    model: dict[str, Any] = {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "output_channels": config.decoder.dim,
        },
        "prompt_encoder_config": {
            "model_type": "sam_prompt_encoder_model",
            "hidden_size": config.decoder.dim,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "mask_input_channels": config.decoder.mask_channels,
        },
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder_model",
            "hidden_size": config.decoder.dim,
            "mlp_dim": config.decoder.mlp,
            "num_hidden_layers": config.decoder.depth,
            "num_attention_heads": config.decoder.heads,
            "iou_head_hidden_dim": config.decoder.iou_hidden,
        },
    }
    return {
        name: json.dumps(v, indent=2) + "\n"
        for name, v in (("config.json", model), ("preprocessor_config.json", processor))
    }


LAYOUTS: dict[str, Layout] = {
    # facebookresearch/segment-anything: segment_anything/utils/onnx.py, notebooks/onnx_model_example.ipynb
    "sam": Layout(
        "segment-anything's ONNX example, Label Studio's ML backend, Roboflow inference; samexporter at 1024 px",
        None,
        "normalised",
        "input_image",
        masks="all",
        mask_side=None,
    ),
    # vietanhdev/anylabeling and CVHub520/X-AnyLabeling: services/auto_labeling/sam_onnx.py; samexporter/sam_onnx.py
    "anylabeling": Layout(
        "AnyLabeling, X-AnyLabeling, samexporter",
        SAM_SIDE,
        "rows",
        "input_image",
        config_files=_any_labeling_config,
    ),
    # wkentaro/osam: osam/_models/sam
    "osam": Layout("osam, labelme", None, "normalised", "x"),
    # cvat-ai/cvat: cvat-ui/plugins/sam/src/ts, serverless/pytorch/facebookresearch/sam/nuclio/scripts/export_encoder.py
    "cvat": Layout(
        "CVAT: the decoder in its browser plugin, the encoder in its serverless function",
        SAM_SIDE,
        "normalised",
        "images",
        "embeddings",
        embedding=SAM_EMBEDDING,
        outputs={
            "cropped": "masks",
            "iou": "iou_predictions",
            "low_res": "low_res_masks",
            "left": "xtl",
            "top": "ytl",
            "right": "xbr",
            "bottom": "ybr",
        },
    ),
    # darktable-org/darktable: src/common/ai/segmentation.c, src/ai/README.md
    "darktable": Layout(
        "darktable",
        SAM_SIDE,
        "normalised",
        "image",
        inputs=FIVE,
        outputs={"square": "masks", "iou": "iou_predictions", "low_res": "low_res_masks"},
        config_files=_darktable_config,
    ),
    # dinglufe/segment-anything-cpp-wrapper: sam.cpp, export_pre_model.py
    "cpp": Layout("segment-anything-cpp-wrapper", SAM_SIDE, "planes", "input", "output"),
    # NVIDIA-AI-IOT/nanosam: nanosam/utils/predictor.py, nanosam/tools/export_sam_mask_decoder_onnx.py
    "nanosam": Layout(
        "NanoSAM, by the engines that trtexec builds of them",
        SAM_SIDE,
        "normalised",
        "image",
        inputs=FIVE,
        outputs={"iou": "iou_predictions", "low_res": "low_res_masks"},
        engines=True,
    ),
    # huggingface/transformers.js: src/models/sam/modeling_sam.js; optimum-onnx: exporters/onnx/model_configs.py
    "transformers": Layout(
        "transformers.js; optimum's SamModel files",
        None,
        "normalised",
        "pixel_values",
        positions="image_positional_embeddings",
        inputs={
            "positions": "image_positional_embeddings",
            "embeddings": "image_embeddings",
            "coords": "input_points",
            "labels": "input_labels",
        },
        outputs={"iou": "iou_scores", "low_res": "pred_masks"},
        masks="three",
        mask_side=None,
        folder="onnx/",
        files=("vision_encoder", "prompt_encoder_mask_decoder"),
        suffixes={"fp16": "_fp16", "int8": "_quantized"},
        config_files=_transformers_config,
    ),
}
"""Every layout but our own."""
