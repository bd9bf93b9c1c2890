"""What lies in the exported files: valid graphs, integers where they are claimed, and their sizes."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import AttributeProto, TensorProto, numpy_helper

from sam_edge.export import to_onnx
from sam_edge.export.graphs import halve_positions
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.models import quantized_attention
from sam_edge.models.grids import OnTwinGrid, TwinGrid
from sam_edge.models.quantized import prepare_for_quantization, quantizable, set_integers, set_twin
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime, session_options

SLOW = pytest.mark.slow
FLOAT = ["fp32", pytest.param("tiny_vit_fp32", marks=SLOW)]
CPU_INTEGER = [
    "int8",
    "int8_decoder",
    pytest.param("int8_whole", marks=SLOW),
    pytest.param("tiny_vit_int8", marks=SLOW),
]
INTEGER = [*CPU_INTEGER, pytest.param("int8_tensorrt", marks=SLOW)]
ALL = [*FLOAT, *INTEGER, pytest.param("fp16", marks=SLOW)]


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    """Constants of a graph."""
    return {value.name: value for value in onnx.load(path).graph.initializer}


def lies_in(graph: str, layer: str) -> bool:
    """Whether a layer belongs to a graph."""
    return layer.startswith("image_encoder.") == (graph == "encoder")


def optimised(folder: Path, graph: str, scratch: Path) -> onnx.GraphProto:
    """What ONNX Runtime makes of a graph."""
    options = session_options(ExportedFolder.read(folder).graphs[graph], threads=1)
    options.optimized_model_filepath = str(scratch / "optimised.onnx")
    ort.InferenceSession(folder / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
    return onnx.load(scratch / "optimised.onnx").graph


def behind_dequantizers(graph: onnx.GraphProto) -> list[str]:
    """Float products of integer weights."""
    makers = {output: node for node in graph.node for output in node.output}
    return [
        next((given for given in node.input if given.endswith(".bias")), node.name)
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv")
        and makers.get(node.input[1]) is not None
        and makers[node.input[1]].op_type == "DequantizeLinear"
    ]


def weighted(exported, graph: str) -> tuple[list[str], list[str]]:
    """Quantized layers with weights that a graph computes in integers, and those in float, as the manifest says.

    Attention's products stay float unless they are asked for."""
    left = json.loads((exported.path / "model.json").read_text())["integer_form"]["float_layers"]
    entries = exported.model.config.quantization.items()
    layers = [name for name, entry in entries if "heads" not in entry and lies_in(graph, name)]
    return [name for name in layers if name not in left], [name for name in layers if name in left]


@pytest.mark.parametrize("name", ALL)
def test_the_graphs_are_valid_and_their_free_sizes_are_named(request, name):
    exported = request.getfixturevalue(name)
    for graph in ("encoder", "decoder", "prepare", "predict", "upscale"):
        model = onnx.load(exported.path / f"{graph}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20
    described = ExportedFolder.read(exported.path).graphs
    assert described["encoder"]["inputs"] == {"pixels": ["batch", 3, 64, 64]}
    side = exported.model.config.mask_size
    assert described["decoder"]["inputs"]["point_coords"] == ["batch", "sets", "points", 2]
    assert described["decoder"]["inputs"]["mask_input"] == ["batch", "sets", 1, side, side]
    assert described["decoder"]["outputs"] == {"logits": ["batch", "sets", 4, side, side], "iou": ["batch", "sets", 4]}
    assert described["predict"]["inputs"]["point_coords"] == [1, "sets", "points", 2]
    assert described["predict"]["outputs"]["iou"] == ["sets", 4]
    assert described["upscale"]["inputs"]["places"] == ["wanted"]
    assert described["upscale"]["outputs"] == {"logits": ["wanted", side, side]}


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("name", INTEGER)
def test_every_quantized_weight_is_an_int8_constant(request, name, graph):
    exported = request.getfixturevalue(name)
    model = onnx.load(exported.path / f"{graph}.onnx").graph
    constants = {value.name: value for value in model.initializer}
    makers = {output: node for node in model.node for output in node.output}
    integer, in_float, float_products = 0, 0, []
    for node in model.node:
        if node.op_type not in ("MatMul", "Conv", "Gemm", "ConvTranspose"):
            continue
        maker = makers.get(node.input[1])
        if node.input[1] in constants:
            float_products.append(node.input[1])
        elif maker is not None and maker.op_type == "DequantizeLinear" and maker.input[0] in constants:
            assert constants[maker.input[0]].data_type == TensorProto.INT8
            # per output channel
            assert np.prod(constants[maker.input[1]].dims) > 1
            rounded = makers[node.input[0]].op_type == "DequantizeLinear"
            integer, in_float = integer + rounded, in_float + (not rounded)
    assert (integer, in_float) == tuple(len(layers) for layers in weighted(exported, graph))
    # prompt coordinates times frequencies, the prompt encoder, which is skipped, and tables of relative positions:
    # a matrix for each row of the grid
    assert all("prompt_encoder" in name or len(constants[name].dims) == 3 for name in float_products)


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["int8", pytest.param("int8_tensorrt", marks=SLOW)])
def test_no_large_table_of_an_integer_graph_is_float32(request, name, graph):
    exported = request.getfixturevalue(name)
    large = [
        value
        for value in initializers(exported.path / f"{graph}.onnx").values()
        if np.prod(value.dims) > 512 and value.data_type != TensorProto.INT8
    ]
    # positions are added, so they have no integer form
    assert [value.data_type for value in large] == [TensorProto.FLOAT16] * (graph == "encoder")


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("name", INTEGER)
def test_activations_have_their_dialect_s_containers(request, name, graph):
    exported = request.getfixturevalue(name)
    model = onnx.load(exported.path / f"{graph}.onnx").graph
    constants = {value.name: numpy_helper.to_array(value) for value in model.initializer}
    zero_points = [constants[node.input[2]] for node in model.node if node.op_type == "QuantizeLinear"]
    weights = [
        constants[node.input[2]]
        for node in model.node
        if node.op_type == "DequantizeLinear" and constants[node.input[2]].ndim
    ]
    assert bool(zero_points) == bool(weighted(exported, graph)[0])
    assert weights
    assert all(zero.dtype == np.int8 and not zero.any() for zero in weights)
    if name == "int8_tensorrt":
        assert all(zero.dtype == np.int8 and zero == 0 for zero in zero_points)
    else:
        assert all(zero.dtype == np.uint8 for zero in zero_points)
        assert not zero_points or len({int(zero) for zero in zero_points}) > 3
    # TensorRT refuses biases behind DequantizeLinear
    biases = [value for value in model.initializer if value.name.endswith(".bias")]
    assert all(value.data_type == TensorProto.FLOAT for value in biases)
    assert not any(value.data_type == TensorProto.INT32 for value in model.initializer)


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("name", CPU_INTEGER)
def test_onnx_runtime_multiplies_integers_in_every_layer_that_is_not_labelled_float(request, tmp_path, name, graph):
    exported = request.getfixturevalue(name)
    model = optimised(exported.path, graph, tmp_path)
    integers = [n for n in model.node if n.op_type in ("MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "QGemm")]
    in_integers, in_float = weighted(exported, graph)
    assert len(integers) == len(in_integers)
    assert behind_dequantizers(model) == []
    # of what is labelled float the weights are dequantized when they are loaded, and products are plain ones
    assert not in_float or {"DequantizeLinear", "MatMulNBits"}.isdisjoint(node.op_type for node in model.node)


def with_twins(quantizer) -> list[str]:
    """Give every MLP behind a GELU and every attention a twin grid; returns their names."""
    named = []
    for name in quantizer.layers:
        module = quantizer.model.get_submodule(name)
        if name.startswith("image_encoder.") and name.endswith("mlp.lin2"):
            twin = TwinGrid.signed(module.plan.input.range[1] / 127, 3, 8)
        elif name.endswith(".products"):
            twin = TwinGrid.unsigned(1 / 127, 3, 8)
        else:
            continue
        module.plan, module.twin = replace(module.plan, twin=twin), OnTwinGrid(twin)
        quantizer.put(name, module)
        named.append(name)
    return named


def every_node(graph) -> list:
    """The nodes of a graph and of the graphs inside them."""
    bodies = [given.g for node in graph.node for given in node.attribute if given.type == AttributeProto.GRAPH]
    return [*graph.node, *(node for body in bodies for node in every_node(body))]


def largest_added(file: Path, tokens: int) -> int:
    """How many additions give tokens x tokens values, per head or for all."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(file), data_prop=True).graph
    bodies = [given.g for node in graph.node for given in node.attribute if given.type == AttributeProto.GRAPH]
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for part in (graph, *bodies)
        for value in part.value_info
    }
    added = [shapes[node.output[0]] for node in every_node(graph) if node.op_type == "Add" if node.output[0] in shapes]
    return sum(shape[-1:] == [tokens] and tokens in shape[:-1] for shape in added)


def test_global_attention_pays_in_integers_and_adds_no_positions_to_its_logits(
    tiny_config, make_sam, photo, tmp_path, monkeypatch
):
    config = tiny_config.replace(patch_size=4, blocks=tiny_config.blocks[1:])
    monkeypatch.setattr(to_onnx, "FEWEST_TOKENS", config.grid**2)
    # several bands of a head
    monkeypatch.setattr(quantized_attention, "BAND", 100)
    model = make_sam(config)
    plain, _ = export_onnx(make_sam(config), tmp_path / "float", [photo], OnnxOptions())
    quantize_model(model, [photo], QuantizeOptions(metric="minmax", prompts_per_image=4))
    simulated = copy.deepcopy(model)
    out, _ = export_onnx(model, tmp_path / "int8", [photo], OnnxOptions("int8"))
    assert largest_added(plain / "encoder.onnx", config.grid**2) > 0
    assert largest_added(out / "encoder.onnx", config.grid**2) == 0
    name = "image_encoder.blocks.0.attn.products"
    assert name not in json.loads((out / "model.json").read_text())["integer_form"]["float_products"]
    # other batches, and the same integers as torch
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2)).numpy()
    set_twin(simulated, False)
    left = json.loads((out / "model.json").read_text())["integer_form"]
    set_integers(simulated, simulated.config.quantization.keys() - {*left["float_products"], *left["float_layers"]})
    halve_positions(simulated)
    got, wanted = (one.host(one.encode(pixels)) for one in (OnnxRuntime(out, threads=1), TorchRuntime(simulated)))
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(got - wanted).mean() < 0.005 * np.abs(wanted).max()


def test_twins_and_products_are_integers_where_asked_for_and_labelled(
    small_config, make_sam, photo, tmp_path, monkeypatch
):
    model = make_sam(small_config)
    quantizer = quantize_model(model, [photo], QuantizeOptions(metric="minmax", prompts_per_image=4))
    twins = with_twins(quantizer)
    monkeypatch.setitem(to_onnx.SMALLEST_IOU, "int8", 0.85)
    asked = OnnxOptions("int8", twin=True, products="all", decoder="integers")
    out, parity = export_onnx(model, tmp_path / "out", [photo], asked)
    assert parity.mask_iou > 0.9
    form = json.loads((out / "model.json").read_text())["integer_form"]
    assert form["twins_as_two_products"] == sorted(twins)
    assert form["float_products"] == form["float_layers"] == form["twins_as_plain"] == []
    nodes = every_node(optimised(out, "encoder", tmp_path))
    integers = [node for node in nodes if node.op_type in ("MatMulIntegerToFloat", "QLinearMatMul")]
    # patches, q, k, v, proj, lin1; two of lin2; q k^T and two of the twin attention weights; two of the neck
    assert len(integers) == 13
    assert behind_dequantizers(optimised(out, "decoder", tmp_path)) == []


def test_what_stays_float_by_default_is_labelled(int8):
    form = json.loads((int8.path / "model.json").read_text())["integer_form"]
    products = {name for name, entry in int8.model.config.quantization.items() if "heads" in entry}
    assert set(form["float_products"]) == products
    assert products
    assert form["float_layers"] == [
        name for name in int8.model.config.quantization if "image_encoder" not in name and name not in products
    ]
    assert form["float_layers"]


def test_onnx_runtime_fuses_every_gelu(int8, tmp_path):
    kinds = [node.op_type for node in optimised(int8.path, "encoder", tmp_path).node]
    assert "Erf" not in kinds
    assert any("Gelu" in kind for kind in kinds)


def weight_bytes(path: Path) -> int:
    """Bytes of a graph's constants."""
    return sum(len(numpy_helper.to_array(value).tobytes()) for value in initializers(path).values())


@SLOW
@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_halves_are_half_as_large(fp16, fp32_small, graph):
    half, whole = (weight_bytes(export.path / f"{graph}.onnx") for export in (fp16, fp32_small))
    assert 0.45 * whole < half < 0.6 * whole


@SLOW
def test_integers_are_a_third_as_large(int8, fp32_small):
    quarter, whole = (weight_bytes(export.path / "encoder.onnx") for export in (int8, fp32_small))
    assert quarter < 0.4 * whole


def test_what_quantizing_skips_is_what_stays_float(int8, small_config, make_sam):
    model = make_sam(small_config)
    prepare_for_quantization(model)
    layers = {name for name, module in model.named_modules() if quantizable(module)}
    assert {name.split(".")[0] for name in layers - set(int8.model.config.quantization)} == {"prompt_encoder"}
