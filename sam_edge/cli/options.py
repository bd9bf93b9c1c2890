"""The options that commands share, and the choices."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

Device = Literal["auto", "cpu", "cuda"]
"""Where models run."""
Precision = Literal["fp32", "fp16", "int8"]
"""Precision of exported graphs."""
Layout = Literal["sam-edge", "sam", "anylabeling", "osam", "cvat", "darktable", "cpp", "nanosam", "transformers"]
"""Whose files are written."""
WeightLayout = Literal["segment-anything", "transformers", "mobile-sam", "slimsam", "safetensors"]
"""Whose keys weights are written under."""
Dialect = Literal["cpu", "tensorrt"]
"""Form of INT8 graphs."""
Products = Literal["auto", "all", "none"]
"""Attention products that become integers in them."""
Layers = Literal["all", "here", "amx", "vnni", "avx2", "i8mm", "dot", "other"]
"""Encoder layers that become integers in them."""
DecoderArithmetic = Literal["float", "integers"]
"""What a decoder of int8 weights computes in."""
EnginePrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
"""What engines compute in."""
Flavor = Literal["rtx", "standard"]
"""Which TensorRT."""
Strategy = Literal["grid", "hierarchical"]
"""Which points of the grid everything mode asks."""
Coverage = Literal["logit", "contrast"]
"""How sure a mask must be of a point for the hierarchical strategy to skip it."""
Prompt = Literal["point", "box"]
"""What masks are prompted with."""
SplitName = Literal["train", "val", "all"]
"""Part of a labelled data set, by the hash of the file name."""
Importance = Literal["disturbed-taylor", "taylor", "hessian", "magnitude", "random"]
"""Measure of a channel's importance."""
Method = Literal["slimsam", "tinysam"]
"""Compression method."""
DecoderStart = Literal["trained", "frozen", "scratch"]
"""What becomes of a student's decoder."""
Projection = Literal["folded", "kept"]
"""How a student's channels become its teacher's."""
Labels = Literal["auto", "data", "teacher"]
"""Whose masks a student learns."""
StoredPrecision = Literal["fp16", "int8"]
"""How embeddings are kept."""
Schedule = Literal["alternate", "one-step"]
"""Order of pruning and distillation."""
Accumulation = Literal["absolute", "signed"]
"""How gradients of many pictures become one importance."""
Ranking = Literal["local", "global"]
"""Whether blocks lose equally much."""
Normalization = Literal["sum", "mean", "max", "standardization", "gaussian"]
"""What makes blocks comparable."""
Optimizer = Literal["adamw", "adam", "muon"]
"""What turns gradients into steps."""
Course = Literal["cosine", "constant", "plateau"]
"""Course of the learning rate."""
Curvature = Literal["fisher", "quantized"]
"""Where the hessian metric takes second derivatives."""
Rounding = Literal["auto", "nearest", "compensated"]
"""How weights are rounded."""
Metric = Literal["hessian", "mse", "minmax"]
"""How scales are chosen."""


# Typer takes no list of Literal, and these are options that repeat


class MaskFormatName(StrEnum):
    """Files that masks are written as."""

    coco = "coco"
    labelme = "labelme"
    cvat = "cvat"
    label_studio = "label-studio"
    yolo = "yolo"
    png = "png"


class RuntimeName(StrEnum):
    """What runs a model."""

    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"
    onnxruntime_cuda = "onnxruntime-cuda"
    onnxruntime_tensorrt = "onnxruntime-tensorrt"
    onnxruntime_coreml = "onnxruntime-coreml"
    onnxruntime_openvino = "onnxruntime-openvino"
    openvino = "openvino"
    openvino_bf16 = "openvino-bf16"
    tensorrt = "tensorrt"


def claim(context: typer.Context, out: Path | None) -> Path | None:
    """The folder of `--out`, which this command holds alone until it ends."""
    if out is not None and not context.resilient_parsing:
        from sam_edge.files import claimed

        context.with_resource(claimed(out))
    return out


MODEL_HELP = (
    "A known name (see `sam-edge models`), a checkpoint file (.pth, .pt, .safetensors), a checkpoint folder, "
    "an exported folder, random:NAME for a known architecture with random weights, or timm:NAME[=FILE] for a SAM to be "
    "trained behind a pretrained backbone of timm's."
)
IMAGES_HELP = "Folder of photos, without labels; or synthetic[:COUNT[:SEED]]."
DEFAULT_IMAGES = "synthetic:64"
"""Pictures that always exist, where `--images` may be left out."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Images = Annotated[str, typer.Option("--images", metavar="DIR", help=IMAGES_HELP)]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder to write; appears whole or not at all.", callback=claim)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random in this command.")]
OnDevice = Annotated[Device, typer.Option("--device", help="Where the model runs; auto takes a GPU if there is one.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an unreadable picture instead of skipping it.")]
ImagesRoot = Annotated[
    Path | None,
    typer.Option("--images-root", metavar="DIR", help="Folder of a COCO json's pictures, where they are not near it."),
]
AsRuntime = Annotated[
    RuntimeName,
    typer.Option("--runtime", help="auto: torch for checkpoints, ONNX Runtime for exported folders."),
]
EvalSplit = Annotated[SplitName, typer.Option("--split", help="Part of the data, by the hash of the file name.")]
CalibrationImages = Annotated[int, typer.Option("--calibration-images", help="Pictures that scales are searched on.")]
