"""A SAM as ONNX: encoder, decoder, and the decoder in three parts, proven against torch before they are kept."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnxscript import ir

from sam_edge.errors import ExportError
from sam_edge.export.graphs import GraphSpec, encoder_graph, graphs, halve_positions, to_half
from sam_edge.export.parity import Parity, answers, compare, require
from sam_edge.export.readme import Accuracy, folder_readme
from sam_edge.export.translate import OPSET, translate
from sam_edge.export.unsigned import note_signs
from sam_edge.files import atomic_folder, check_target
from sam_edge.models.clamps import link_clamps
from sam_edge.models.cost import cost
from sam_edge.models.quantized import (
    Dialect,
    QuantizedConv2d,
    QuantizedLayer,
    prepare_for_quantization,
    set_dialect,
    set_integers,
    set_twin,
)
from sam_edge.models.quantized_attention import QuantizedProducts
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.runtimes.folder import MANIFEST, graph_sha256
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.paying import family, pays, read_table
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.runtime import Runtime

Precision = Literal["fp32", "fp16", "int8"]
Products = Literal["auto", "all", "none"]
Layers = Literal["all", "here", "amx", "vnni", "avx2", "i8mm", "dot", "other"]
DecoderArithmetic = Literal["float", "integers"]

SCHEMA = 1
FEWEST_TOKENS = 1024
"""Tokens from which a global attention's integer products pay in ONNX Runtime: then its logits outgrow the cache."""
SMALLEST_IOU = {"fp32": 0.999, "fp16": 0.98, "int8": 0.95}
"""Mean mask IoU with torch below which an export fails, by precision."""


@dataclass(frozen=True)
class OnnxOptions:
    """How a model is written."""

    precision: Precision = "fp32"
    """`int8` needs a quantized checkpoint, `fp32` and `fp16` a float one."""
    dialect: Dialect = "cpu"
    """For which runtimes the graph is written: `cpu` takes attention in bands, and integers with asymmetric uint8
    activations; `tensorrt` takes attention whole, and integers with symmetric int8 ones."""
    twin: bool = False
    """Write twin scales as two integer products that are summed, which is slower; else the plain grid searched beside
    them."""
    products: Products = "auto"
    """Matrix products of attention (q with k, weights with v) that become integers: `all`, `none`, or those that pay in
    ONNX Runtime, which are global attention's; `model.json` lists the others. OpenVINO is faster with `none`."""
    layers: Layers = "all"
    """Encoder layers that become integers: `all`, or those that were measured to be faster so in ONNX Runtime, on this
    machine's family of processors (`here`) or on another (`avx2`). Where a family was not measured, all are integers.
    The others compute in float of the same integer weights; `model.json` lists them. Layers are measured one by one;
    in a whole graph `all` can still be the faster, hence the default.
    """
    decoder: DecoderArithmetic = "float"
    """What the decoder of int8 weights computes in: `float`, faster for clicks, which then never form the image
    tokens, or `integers`, faster for boxes and masks."""


def export_onnx(
    model: EdgeSam,
    out: str | Path,
    images: Sequence[np.ndarray],
    options: OnnxOptions,
    source: str = "a checkpoint",
    measure: Callable[[Runtime], Accuracy] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Path, Parity]:
    """Write an exported folder; `model` is consumed (halved, or switched to the dialect, in place).

    The decoder takes B images x N prompt sets x P points, all free; the picture's own size stays outside. `fp16`
    is compared with the float model, `int8` with the quantized one as torch simulates it. The folder's README.md names
    `source` as what was exported, and says what `measure` finds of the graphs.

    Raises:
        ExportError: a precision that the checkpoint does not have, or masks on `images` that differ from torch's.
    """
    check_target(Path(out))
    quantized = model.config.quantization is not None
    if quantized and options.precision != "int8":
        raise ExportError(f"a quantized checkpoint is exported with --precision int8, got {options.precision}.")
    if not quantized and options.precision == "int8":
        raise ExportError("--precision int8 needs a quantized checkpoint: run `sam-edge quantize` first.")
    if not images:
        raise ExportError("parity needs at least one picture: check --images.")
    _take_form(model, options)
    wanted = answers(TorchRuntime(model), images)
    dtype = torch.float32
    if options.precision == "fp16":
        to_half(model)
        dtype = torch.float16
    with atomic_folder(out) as work:
        whole = options.dialect == "tensorrt"
        specs = graphs(model, dtype)
        described: dict[str, Any] = {}
        for number, spec in enumerate(specs):
            if on_progress is not None:
                on_progress(number, len(specs) + 1, spec.name)
            described[spec.name] = _write(spec, work, whole)
        if on_progress is not None:
            on_progress(len(specs), len(specs) + 1, "agreement with torch")
        counted = cost(model.config.replace(quantization=None))
        manifest = _manifest(model, options, described) | {"cost": asdict(counted)}
        (work / MANIFEST).write_text(json.dumps(manifest))
        # what is proven is what every tool computes
        runtime = OnnxRuntime(work, threads=cpu_threads(), kernels=False)
        parity = compare(wanted, answers(runtime, images, split=True))
        require(parity, SMALLEST_IOU[options.precision], f"the {options.precision} export")
        manifest["parity"] = parity.as_dict()
        accuracy = None if measure is None else measure(runtime)
        manifest["accuracy"] = None if accuracy is None else asdict(accuracy)
        page = folder_readme(
            Path(out).name, source, options.precision, model.config, counted, described, parity, accuracy
        )
        (work / "README.md").write_text(page, encoding="utf-8")
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return Path(out), parity


def write_encoder(model: EdgeSam, folder: Path, options: OnnxOptions) -> Path:
    """An exported folder of the encoder alone, unproven, for timing; returns the graph's file. `model` is consumed."""
    _take_form(model, options)
    described = {"encoder": _write(encoder_graph(model, torch.float32), folder)}
    (folder / MANIFEST).write_text(json.dumps(_manifest(model, options, described)))
    return folder / described["encoder"]["file"]


def _manifest(model: EdgeSam, options: OnnxOptions, graphs: dict[str, Any]) -> dict[str, Any]:
    """What `model.json` says at least."""
    quantized = model.config.quantization is not None
    return {
        "schema": SCHEMA,
        "precision": options.precision,
        "dialect": options.dialect if quantized else None,
        "integer_form": _integer_form(model, options) if quantized else None,
        "opset": OPSET,
        "config": asdict(model.config),
        "graphs": graphs,
    }


def _take_form(model: EdgeSam, options: OnnxOptions) -> None:
    """Bring a model to the form that its graphs have, in place."""
    if model.config.quantization is None:
        # not for its own sake: q, k and v apart and folded batch norms are the better graph in float too
        prepare_for_quantization(model)
        return
    _compute_as(model, options)
    halve_positions(model)


def _compute_as(model: EdgeSam, options: OnnxOptions) -> None:
    """Switch a quantized model to the arithmetic of its graphs."""
    if model.config.backbone is not None:
        link_clamps(model.image_encoder, 2 * model.config.backbone.strides[-1])
    set_dialect(model, options.dialect)
    set_twin(model, options.twin)
    set_integers(model, integer_parts(model, options))


@contextmanager
def as_exported(model: EdgeSam, options: OnnxOptions) -> Iterator[None]:
    """Have a quantized model compute what its graphs do, while the block runs; then everything in integers again."""
    _compute_as(model, options)
    try:
        yield
    finally:
        _compute_as(model, OnnxOptions("int8", twin=True, products="all", decoder="integers"))


def integer_parts(model: EdgeSam, options: OnnxOptions) -> set[str]:
    """Names of the layers and attention products that a quantized model's graphs compute in integers."""
    return {
        name
        for name, module in model.named_modules()
        if options.decoder == "integers" or name.startswith("image_encoder.")
        if (isinstance(module, QuantizedLayer) and _pays(name, module, options))
        or (isinstance(module, QuantizedProducts) and _multiplies_integers(name, model.config, options))
    }


def _pays(name: str, layer: QuantizedLayer, options: OnnxOptions) -> bool:
    """Whether a layer becomes integers."""
    if options.layers == "all" or options.dialect != "cpu" or not name.startswith("image_encoder."):
        return True
    processor = family() if options.layers == "here" else options.layers
    rows = read_table().get("onnxruntime", {}).get(processor, [])
    outputs, inputs, *sides = layer.weight.shape
    if not isinstance(layer, QuantizedConv2d):
        # as matrix products, of patches where there are any
        return pays(rows, "linear", inputs * prod(sides), outputs)
    if layer.groups > 1:
        return pays(rows, "depthwise", outputs, outputs)
    return pays(rows, "pointwise" if prod(sides) == 1 else "convolution", inputs, outputs)


def _multiplies_integers(products: str, config: ModelConfig, options: OnnxOptions) -> bool:
    """Whether attention products, by their name, become integers."""
    if options.products != "auto":
        return options.products == "all"
    if options.dialect != "cpu" or config.grid**2 < FEWEST_TOKENS:
        return False
    blocks = enumerate(config.blocks)
    return products in {f"image_encoder.blocks.{index}.attn.products" for index, block in blocks if not block.window}


def _integer_form(model: EdgeSam, options: OnnxOptions) -> dict[str, Any]:
    """What of a quantized checkpoint the graphs compute otherwise than it does, by name of the layer."""
    entries = (model.config.quantization or {}).items()
    integers = integer_parts(model, options)
    left = [name for name, _ in entries if name not in integers]
    twins = [name for name, entry in entries if entry.get("split") and name in integers]
    products = {name for name, entry in entries if "heads" in entry}
    return {
        "float_products": [name for name in left if name in products],
        "float_layers": [name for name in left if name not in products],
        "twins_as_plain": [] if options.twin else twins,
        "twins_as_two_products": twins if options.twin else [],
        "containers": "int8, whatever the bits",
    }


def _write(spec: GraphSpec, folder: Path, whole: bool = False) -> dict[str, Any]:
    """Export one graph; returns its entry in `model.json`."""
    program, notes = translate(spec, whole)
    model = program.model
    file = folder / f"{spec.name}.onnx"
    program.save(file, external_data=_weight_bytes(spec) > 1_800_000_000)
    integers = any(node.op_type == "QuantizeLinear" for node in model.graph)
    signs = {"unsigned": note_signs(file)} if integers else {}
    return {
        "file": file.name,
        "sha256": graph_sha256(file),
        "integers": integers,
        **signs,
        **{kind: found for kind, found in notes.items() if found},
        "inputs": {value.name: _shape(value) for value in model.graph.inputs},
        "outputs": {value.name: _shape(value) for value in model.graph.outputs},
    }


def _weight_bytes(spec: GraphSpec) -> int:
    tensors = [*spec.module.parameters(), *spec.module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shape(value: ir.Value) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in value.shape or ()]
