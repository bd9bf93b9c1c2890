"""An exported folder's graphs with types written into them, and the proof that these cost nothing on photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from jaxtyping import Float32, UInt8
from onnx import TensorProto

from sam_edge.errors import ExportError
from sam_edge.export.parity import Answers, Parity, answers, compare, parity_prompts
from sam_edge.export.ranges import UNIT, Kept, Readings, keep, sensitivities
from sam_edge.export.typed import CONTRACT, gelu_by_erf, quantize_to_e4m3, write_types
from sam_edge.export.walk import WalkRuntime
from sam_edge.runtimes.folder import SPLIT, ExportedFolder
from sam_edge.runtimes.graphs import Values
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.runtime import Runtime

EnginePrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Picture = UInt8[np.ndarray, "h w 3"]

SMALLEST_IOU: dict[str, float] = {"fp16": 0.98, "int8": 0.95, "bf16": 0.9, "fp8": 0.95}
"""Mean mask IoU with the same graphs in float32 below which typed graphs are refused: integers round anew behind the
smallest change, and where a half has eight values, bfloat16 has one."""
TOLERANCES = (16.0, 4.0, 1.0)
"""Errors at a graph's end for which nodes keep float32, in units of rounding once: the next where masks disagree."""
READ_SETS = slice(None, None, 4)
"""Which of the prompts that parity compares are read: points, padded ones and boxes."""
LARGEST_FILE = 1_800_000_000
"""Bytes of weights that a graph's own file holds: protobuf ends at 2 GiB."""
BACKWARDS = ("upscale", "predict", "prepare", "decoder", "encoder")
"""Graphs in the order in which what they take is known from what follows them."""


@dataclass(frozen=True)
class TypedGraphs:
    """Graphs in one precision, in files of their own."""

    precision: EnginePrecision
    files: dict[str, Path]
    """Per graph."""
    float32: dict[str, list[Kept]]
    """Per graph: nodes that keep float32, with the reason."""
    parity: Parity | None
    """Agreement with the same graphs in float32; None where nothing was changed."""
    fp8_layers: tuple[str, ...] = ()


def write_typed(
    exported: ExportedFolder,
    folder: Path,
    precision: EnginePrecision,
    images: Sequence[Picture],
    others: Sequence[Picture] = (),
    erf: bool = False,
) -> TypedGraphs:
    """Write each graph into `folder` as NAME.PRECISION.onnx, proven on `others` (or `images`, which are read).

    int8 types what its Q/DQ leave in float as halves; fp8 quantizes the encoder's linear layers to E4M3, by the ranges
    of `images`. float32 graphs stay the folder's own, and nothing is written. `erf` writes Gelu by Erf.

    Raises:
        ExportError: a precision that the graphs cannot have, no picture, a graph that cannot be typed, or masks that
            differ from those of the same graphs in float32 by more than `SMALLEST_IOU` allows.
    """
    check_precision(exported, precision)
    if precision == "fp32" and not erf:
        own = {graph: exported.graph_file(graph) for graph in exported.graphs}
        return TypedGraphs(precision, own, {graph: [] for graph in own}, None)
    sources = {graph: onnx.load(exported.graph_file(graph)) for graph in exported.graphs}
    if erf:
        sources = {graph: gelu_by_erf(model) for graph, model in sources.items()}
    if precision == "fp32":
        written = {graph: folder / f"{graph}.fp32.onnx" for graph in sources}
        for graph, file in written.items():
            save(sources[graph], file)
        return TypedGraphs(precision, written, {graph: [] for graph in sources}, None)
    if not images:
        raise ExportError("ranges are read on at least one picture: check --images.")
    exported.require_split()
    kind = TensorProto.BFLOAT16 if precision == "bf16" else TensorProto.FLOAT16
    others = others or images
    wanted = asked(OnnxRuntime(exported.path, threads=cpu_threads(), kernels=False), others)
    readings = read(exported, sources, images, kind)
    quantized: Sequence[str] = ()
    if precision == "fp8":
        sources["encoder"], quantized = quantize_to_e4m3(sources["encoder"], readings["encoder"].peaks)
        readings = read(exported, sources, images, kind)
    felt = _felt(sources, readings)
    for tolerance in TOLERANCES:
        kept = {graph: keep(sources[graph], readings[graph], felt[graph], tolerance * UNIT[kind]) for graph in sources}
        files, stayed = _write(sources, kept, kind, folder, precision)
        parity = compare(wanted, asked(WalkRuntime(exported, files), others))
        worst = min(parity.mask_iou, parity.mask_iou if parity.split_mask_iou is None else parity.split_mask_iou)
        if worst >= SMALLEST_IOU[precision]:
            return TypedGraphs(precision, files, stayed, parity, tuple(quantized))
    raise ExportError(
        f"in {precision} masks agree with those of float32 to a mean IoU of {worst:.4f} on {len(others)} pictures, "
        f"below {SMALLEST_IOU[precision]}, with {sum(map(len, stayed.values()))} nodes left in float32: nothing was "
        f"written. Use another --precision ({'bf16 or ' if precision == 'fp16' else ''}fp32), or --images like yours."
    )


def check_precision(exported: ExportedFolder, precision: EnginePrecision) -> None:
    """Raises ExportError for a precision that a folder's graphs cannot have, and for int8 in the CPU's dialect."""
    integers = exported.precision == "int8"
    if integers and exported.dialect != "tensorrt":
        raise ExportError(
            f"{exported.path} holds int8 graphs in the {exported.dialect} dialect, whose zero points TensorRT refuses: "
            "export the quantized checkpoint again with --dialect tensorrt."
        )
    if exported.precision == "fp16":
        raise ExportError(
            f"{exported.path} was exported in fp16, all of it; engines round what can be rounded: give the checkpoint, "
            "or its export with --precision fp32."
        )
    match_precision(str(exported.path), integers, precision)


def match_precision(name: str, quantized: bool, precision: EnginePrecision) -> None:
    """Raises ExportError for int8 of a model that is not quantized, and for anything else of one that is."""
    if quantized and precision != "int8":
        raise ExportError(f"{name} is quantized, and its engines are int8, got --precision {precision}: leave it out.")
    if not quantized and precision == "int8":
        raise ExportError(
            f"--precision int8 needs a quantized model, and {name} is not: run `sam-edge quantize` first."
        )


def asked(runtime: Runtime, images: Sequence[Picture]) -> list[Answers]:
    """What parity asks, and the same boxes again with the masks that they gave."""
    found = answers(runtime, images, split=True)
    return found + [_refined(runtime, image, one.logits) for image, one in zip(images, found, strict=True)]


def _refined(runtime: Runtime, image: Picture, logits: Float32[np.ndarray, "1 n 4 h w"], sets: int = 4) -> Answers:
    pixels, frame = to_pixels(image, runtime.config)
    prompts = parity_prompts(frame)
    again = replace(prompts.part(slice(-sets, None)), masks=logits[:, -sets:, :1])
    embeddings = runtime.encode(pixels)
    return Answers(runtime.host(embeddings), *runtime.decode(embeddings, again))


def read(
    exported: ExportedFolder, graphs: Mapping[str, onnx.ModelProto], images: Sequence[Picture], kind: int
) -> dict[str, Readings]:
    """What every graph's values are like on pictures: a few points and boxes on each, boxes with masks again."""
    reader = _Reader(exported, graphs, kind)
    for image in images:
        pixels, frame = to_pixels(image, exported.config)
        embeddings, prompts = reader.encode(pixels), parity_prompts(frame).part(READ_SETS)
        logits, _ = reader.decode(embeddings, prompts)
        reader.decode(embeddings, replace(prompts.part(slice(-1, None)), masks=logits[:, -1:, :1]))
        for some in (prompts.part(slice(-1)), prompts.part(slice(-1, None))):
            count = some.labels.shape[1]
            predicted = reader.predict(reader.prepare(embeddings), some)
            reader.upscale(predicted, np.arange(count).repeat(2), np.tile([0, 2], count))
    return reader.readings


class _Reader(WalkRuntime):
    """Walks that are read."""

    def __init__(self, folder: ExportedFolder, graphs: Mapping[str, onnx.ModelProto], kind: int) -> None:
        super().__init__(folder, graphs)
        self.readings = {graph: Readings(kind) for graph in folder.graphs}

    def _run(self, graph: str, inputs: Values) -> Values:
        return self.readings[graph].read(self.walk(graph), inputs)


def _felt(sources: Mapping[str, onnx.ModelProto], readings: Mapping[str, Readings]) -> dict[str, dict[str, float]]:
    """Each graph's sensitivities, those of what one graph hands to another included."""
    ends: dict[str, float] = {}
    felt = {}
    for graph in BACKWARDS:
        felt[graph] = sensitivities(sources[graph], readings[graph], ends)
        for value in sources[graph].graph.input:
            ends[value.name] = max(ends.get(value.name, 0.0), felt[graph].get(value.name, 0.0))
    return felt


def _write(
    sources: Mapping[str, onnx.ModelProto],
    kept: Mapping[str, Mapping[str, Kept]],
    kind: int,
    folder: Path,
    precision: str,
) -> tuple[dict[str, Path], dict[str, list[Kept]]]:
    files: dict[str, Path] = {}
    stayed: dict[str, list[Kept]] = {}
    between: dict[str, int] = {}
    for graph in ("encoder", "decoder", *SPLIT):
        typed, stayed[graph] = write_types(sources[graph], kept[graph], kind, between)
        between |= {
            value.name: value.type.tensor_type.elem_type for value in typed.graph.output if value.name not in CONTRACT
        }
        files[graph] = folder / f"{graph}.{precision}.onnx"
        save(typed, files[graph])
    return files, stayed


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph; its weights go beside it where a file may not hold them."""
    data = file.with_name(f"{file.name}.data")
    data.unlink(missing_ok=True)
    options: dict[str, Any] = {}
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE:
        options = {"save_as_external_data": True, "location": data.name}
    onnx.save(model, file, **options)
