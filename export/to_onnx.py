"""A SAM as ONNX: encoder, decoder, and the decoder in three parts, proven against torch before they are kept."""

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxscript.optimizer
import torch
from onnxscript import ir, opset18

from sam_edge.errors import ExportError
from sam_edge.export.banded import SHAPE_KEPT, banded_attention
from sam_edge.export.graphs import GraphSpec, encoder_graph, graphs, halve_positions, to_half
from sam_edge.export.kernel_notes import mark, note_attention, take_marks
from sam_edge.export.parity import Parity, answers, compare, require
from sam_edge.export.readme import Accuracy, folder_readme
from sam_edge.export.unsigned import note_signs
from sam_edge.files import atomic_folder, check_target
from sam_edge.models.cost import cost
from sam_edge.models.quantized import (
    Dialect,
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
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.runtime import Runtime

Precision = Literal["fp32", "fp16", "int8"]
Products = Literal["auto", "all", "none"]
DecoderArithmetic = Literal["float", "integers"]

OPSET = 18
SCHEMA = 1
LARGEST_FOLDED = 4096
"""Constants of more elements than this are computed in the graph: stored, they would outweigh int8 weights."""
ALWAYS_FOLDED = ("Transpose", "Reshape")
"""Folded at any size: they add nothing, and TensorRT takes int8 weights only straight before DequantizeLinear."""
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
    """Q/DQ form of int8: asymmetric uint8 activations (`cpu`) or symmetric int8 ones (`tensorrt`)."""
    twin: bool = False
    """Write twin scales as two integer products that are summed; else the plain grid searched beside them.

    Measured on SAM-B's MLP: 1.6 x as slow in ONNX Runtime and OpenVINO, hence not the default.
    """
    products: Products = "auto"
    """Attention products that become integers, of the encoder and of a decoder in integers: `all`, `none`, or those
    that pay in ONNX Runtime; `model.json` lists the others.

    Measured on SAM-B at 1024 px: global attention takes half of its float time, and a tenth of its memory; windows take
    as long as in float. OpenVINO is faster with `none`.
    """
    decoder: DecoderArithmetic = "float"
    """What the decoder of int8 weights computes in.

    Measured on nano, one thread: in float, a batch of clicks is predicted 1.15 x as fast as in integers in ONNX Runtime
    and 1.45 x as fast in OpenVINO, since few tokens hardly use them and a walk of float layers never forms the image
    tokens; boxes and masks, which walk through them, take 1.15 and 1.24 x as long.
    """


def export_onnx(
    model: EdgeSam,
    out: str | Path,
    images: Sequence[np.ndarray],
    options: OnnxOptions,
    source: str = "a checkpoint",
    measure: Callable[[Runtime], Accuracy] | None = None,
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
        described = {spec.name: _write(spec, work) for spec in graphs(model, dtype)}
        counted = cost(model.config.replace(quantization=None))
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "precision": options.precision,
            "dialect": options.dialect if quantized else None,
            "integer_form": _integer_form(model, options) if quantized else None,
            "opset": OPSET,
            "config": asdict(model.config),
            "cost": asdict(counted),
            "graphs": described,
        }
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
    """The encoder's graph alone, unproven, for timing; `model` is consumed."""
    _take_form(model, options)
    return folder / _write(encoder_graph(model, torch.float32), folder)["file"]


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
        if isinstance(module, QuantizedLayer)
        or (isinstance(module, QuantizedProducts) and _multiplies_integers(name, model.config, options))
    }


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


def _write(spec: GraphSpec, folder: Path) -> dict[str, Any]:
    """Export one graph; returns its entry in `model.json`."""
    shapes = _free_shapes(spec)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            spec.module,
            spec.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            dynamic_shapes=shapes,
            custom_translation_table=_translations(),
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx.export gave no graph for the {spec.name}.")
    _name_axes(program.model, spec)
    onnxscript.optimizer.optimize_ir(
        program.model,
        output_size_limit=LARGEST_FOLDED,
        should_fold=lambda node: True if node.op_type in ALWAYS_FOLDED else None,
    )
    attention = note_attention(program.model.graph, take_marks(program.model))
    _strip_notes(program.model)
    file = folder / f"{spec.name}.onnx"
    program.save(file, external_data=_weight_bytes(spec) > 1_800_000_000)
    integers = any(node.op_type == "QuantizeLinear" for node in program.model.graph)
    signs = {"unsigned": note_signs(file)} if integers else {}
    return {
        "file": file.name,
        "sha256": graph_sha256(file),
        "integers": integers,
        **signs,
        **({"kernels": attention} if attention else {}),
        "inputs": {value.name: _shape(value) for value in program.model.graph.inputs},
        "outputs": {value.name: _shape(value) for value in program.model.graph.outputs},
    }


def _free_shapes(spec: GraphSpec) -> tuple[Any, ...]:
    """Each input's free axes; those of a variable number of inputs are one tuple to the exporter."""
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(spec.dynamic.get(name, ()), free) for name in spec.inputs)
    kinds = [parameter.kind for parameter in inspect.signature(spec.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    single = len(kinds) - 1
    return (*shapes[:single], shapes[single:])


def _translations() -> dict[Any, Any]:
    """ONNX's own operators for the two that quantized layers are made of, and a GELU that ONNX Runtime knows.

    It fuses x (1 + erf) 1/2 in this order only; the exporter's own x (1/2 (1 + erf)) stays five passes over memory.
    """

    def quantize(x, scale, zero_point):
        return opset18.QuantizeLinear(x, scale, zero_point)

    def dequantize(q, scale, zero_point, axis: int):
        return opset18.DequantizeLinear(q, scale, zero_point, axis=axis)

    def gelu(x, approximate: str = "none"):
        # of the type of x: of what Erf gives the exporter knows no type, and takes float32
        root, one, half = (opset18.Constant(value=ir.to_proto(ir.tensor(v, x.dtype))) for v in (2**0.5, 1.0, 0.5))
        error = opset18.Erf(opset18.Div(x, root))
        return opset18.Mul(opset18.Mul(x, opset18.Add(error, one)), half)

    def banded(q, k, v, rel_h, rel_w):
        # the exporter reads annotations as an operator's types, and warns of any others
        return banded_attention(q, k, v, rel_h, rel_w)

    def marked(x, role: str):
        return mark(x, role)

    ops = torch.ops.sam_edge
    own = {
        ops.marked.default: marked,
        ops.quantize.default: quantize,
        ops.dequantize.default: dequantize,
        ops.banded_attention.default: banded,
    }
    return own | {torch.ops.aten.gelu.default: gelu}


def _name_axes(model: ir.Model, spec: GraphSpec) -> None:
    """Give free sizes their names instead of the exporter's s20, s0, ..."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        sizes = [str(size) for size in value.shape or ()]
        names |= {sizes[axis]: name for axis, name in spec.dynamic.get(value.name or "", {}).items()}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(
            [size if isinstance(size, int) else _renamed(str(size), names) for size in value.shape or ()]
        )


def _renamed(size: str, names: dict[str, str]) -> str:
    """A free size, or an expression of some, in our names."""
    return re.sub(r"[A-Za-z_]\w*", lambda symbol: names.get(symbol[0], symbol[0]), size)


def _strip_notes(model: ir.Model) -> None:
    """Drop stack traces and the shapes of inner values: for a small model they would be a tenth of the file.

    Every runtime infers those shapes itself, but for free sizes behind a Reshape: where bands of an attention are not
    known to be of one size, ONNX Runtime plans memory for each, and takes twice as long to load them.
    """
    kept = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for node in model.graph:
        for value in node.outputs:
            if value not in kept and SHAPE_KEPT not in value.metadata_props:
                value.shape = value.type = None
            value.metadata_props.clear()
            value.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _weight_bytes(spec: GraphSpec) -> int:
    tensors = [*spec.module.parameters(), *spec.module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shape(value: ir.Value) -> list[int | str]:
    return [size if isinstance(size, int) else str(size) for size in value.shape or ()]
