"""sam_edge.export.to_onnx: graphs that say what torch says, and integers that are integers."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import AttributeProto, TensorProto, numpy_helper

from sam_edge.errors import BackendUnavailableError, CheckpointError, ExportError
from sam_edge.export import to_onnx
from sam_edge.export.graphs import halve_positions
from sam_edge.export.onnx_runtime import ExportedFolder, OnnxRuntime, decoder_inputs, is_exported_folder
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.models import quantized_attention
from sam_edge.models.grids import OnTwinGrid, TwinGrid
from sam_edge.models.prompts import ABSENT, Prompts
from sam_edge.models.quantized import prepare_for_quantization, quantizable, set_products, set_twin
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.runtime import TorchRuntime

SLOW = pytest.mark.slow
FLOAT = ["fp32", pytest.param("tiny_vit_fp32", marks=SLOW)]
CPU_INTEGER = ["int8", pytest.param("int8_whole", marks=SLOW), pytest.param("tiny_vit_int8", marks=SLOW)]
INTEGER = [*CPU_INTEGER, pytest.param("int8_tensorrt", marks=SLOW)]
ALL = [*FLOAT, *INTEGER, pytest.param("fp16", marks=SLOW)]


def some_prompts(batch: int, sets: int, points: int, mask_size: int = 0) -> Prompts:
    """Random points, with a mask prompt where it has a size."""
    generator = torch.Generator().manual_seed(sets)
    return Prompts(
        64 * torch.rand(batch, sets, points, 2, generator=generator),
        torch.randint(-1, 4, (batch, sets, points), generator=generator),
        torch.randn(batch, sets, 1, mask_size, mask_size, generator=generator) if mask_size else None,
    )


def assert_agree(name: str, wanted: np.ndarray, got: np.ndarray, float_tolerance: float) -> None:
    """Equal to rounding in float; for halves and integers to a few steps of their grids."""
    assert got.shape == wanted.shape
    if name.endswith("fp32"):
        np.testing.assert_allclose(got, wanted, rtol=float_tolerance, atol=float_tolerance)
    else:
        steps = 4 if name == "tiny_vit_int8" else 1
        assert np.abs(got - wanted).max() < 0.05 * steps * np.abs(wanted).max()
        assert np.abs(got - wanted).mean() < 0.005 * steps * np.abs(wanted).max()


# --- What the graphs compute


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [1, 3])
def test_embeddings_are_torch_s_at_other_batch_sizes(request, name, batch):
    exported = request.getfixturevalue(name)
    pixels = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    assert_agree(name, exported.torch.encode(pixels).numpy(), exported.runtime.encode(pixels), 1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("batch", "sets", "points"), [(1, 1, 1), (1, 5, 2), (3, 2, 7)])
def test_masks_are_torch_s_at_other_sizes(request, name, batch, sets, points):
    exported = request.getfixturevalue(name)
    wanted, got = exported.decode(some_prompts(batch, sets, points))
    for one, other in zip(wanted, got, strict=True):
        assert_agree(name, one, other, 1e-3)


@pytest.mark.parametrize("name", INTEGER)
def test_an_integer_graph_is_torch_s_simulation_before_it_is_fused(request, name):
    exported = request.getfixturevalue(name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    encoder, decoder = (
        ort.InferenceSession(exported.path / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
        for graph in ("encoder", "decoder")
    )
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    prompts = some_prompts(2, 3, 2)
    embeddings = exported.torch.encode(pixels)
    # a value on the edge of two steps may still fall to either side
    off = np.abs(encoder.run(None, {"pixels": pixels.numpy()})[0] - embeddings.numpy())
    assert np.quantile(off, 0.99) < 1e-4
    given = {"embeddings": embeddings.numpy(), **decoder_inputs(exported.model.config, prompts)}
    for wanted, got in zip(exported.torch.decode(embeddings, prompts), decoder.run(None, given), strict=True):
        assert np.quantile(np.abs(got - wanted.numpy()), 0.99) < 1e-3


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_mask_prompts_are_torch_s(request, name):
    exported = request.getfixturevalue(name)
    wanted, got = exported.decode(some_prompts(2, 2, 1, exported.model.config.mask_size))
    for one, other in zip(wanted, got, strict=True):
        assert_agree(name, one, other, 1e-3)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_padded_sets_give_what_each_gives_alone(request, name):
    exported = request.getfixturevalue(name)
    full = some_prompts(1, 3, 4)
    labels, coords = full.labels.clone(), full.coords.clone()
    for index, kept in enumerate((1, 4, 2)):
        labels[:, index, kept:] = ABSENT
        # whatever lies at an absent point must not matter
        coords[:, index, kept:] = 1e4
    _, (logits, iou) = exported.decode(Prompts(coords, labels))
    for index, kept in enumerate((1, 4, 2)):
        at = slice(index, index + 1)
        _, alone = exported.decode(Prompts(full.coords[:, at, :kept], full.labels[:, at, :kept]))
        np.testing.assert_allclose(logits[:, at], alone[0], rtol=1e-3, atol=2e-3 * np.abs(logits).max())
        np.testing.assert_allclose(iou[:, at], alone[1], rtol=1e-3, atol=2e-3)
    _, whole = exported.decode(full)
    assert np.abs(whole[0][:, 0] - logits[:, 0]).max() > 0.01 * np.abs(logits).max()


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_mask_counts_only_where_it_is_said_to_be_given(request, name):
    exported = request.getfixturevalue(name)
    session = ort.InferenceSession(exported.path / "decoder.onnx", providers=["CPUExecutionProvider"])
    config = exported.model.config
    prompts = some_prompts(1, 2, 2, config.mask_size)
    embeddings = np.random.default_rng(1).normal(size=(1, 32, config.grid, config.grid)).astype(np.float32)
    given = {"embeddings": embeddings, **decoder_inputs(config, prompts)}
    with_masks = session.run(None, given)[0]
    ignored = session.run(None, {**given, "has_mask_input": np.zeros((1, 2), np.float32)})[0]
    without = decoder_inputs(config, Prompts(prompts.coords, prompts.labels))
    absent = session.run(None, {"embeddings": embeddings, **without})[0]
    mixed = session.run(None, {**given, "has_mask_input": np.array([[0, 1]], np.float32)})[0]
    np.testing.assert_array_equal(ignored, absent)
    tolerance = 2e-3 * np.abs(absent).max()
    np.testing.assert_allclose(mixed[:, 0], absent[:, 0], atol=tolerance)
    np.testing.assert_allclose(mixed[:, 1], with_masks[:, 1], atol=tolerance)
    assert np.abs(with_masks - absent).max() > 0.01 * np.abs(absent).max()


def test_a_predictor_on_onnx_runtime_answers_as_on_torch(fp32, photo):
    answers = []
    for runtime in (fp32.torch, fp32.runtime):
        predictor = SamPredictor(runtime)
        predictor.set_image(photo)
        answers.append(predictor.predict(box=np.array([10, 5, 60, 40]), return_logits=True))
    for wanted, got in zip(*answers, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


# --- The decoder in three graphs


def split_of(exported, prompts: Prompts, sets: torch.Tensor, masks: torch.Tensor) -> list[np.ndarray]:
    """IoU and wanted logits of prompts about one image, by ONNX Runtime."""
    config = exported.model.config
    shape = (1, config.decoder.dim, config.grid, config.grid)
    embeddings = torch.randn(shape, generator=torch.Generator().manual_seed(4)).numpy()
    prediction = exported.runtime.predict(exported.runtime.prepare(embeddings), prompts)
    return [exported.runtime.upscale(prediction, sets, masks).numpy(), prediction.iou.numpy()]


@pytest.mark.parametrize("sets", [1, 6])
@pytest.mark.parametrize(
    "name", ["fp32", "int8", pytest.param("fp16", marks=SLOW), pytest.param("int8_tensorrt", marks=SLOW)]
)
def test_the_split_graphs_are_torch_s_decoder(request, name, sets):
    exported = request.getfixturevalue(name)
    prompts = some_prompts(1, sets, 3)
    prompts.labels[:, 0, 1:] = ABSENT
    (wanted, wanted_iou), _ = exported.decode(prompts)
    # more than one call takes, out of order, one of them twice
    chosen = torch.arange(sets).flip(0).repeat_interleave(2)
    masks = torch.arange(2 * sets) % 4
    logits, iou = split_of(exported, prompts, chosen, masks)
    assert_agree(name, wanted_iou[0], iou, 1e-4)
    assert_agree(name, wanted[0, chosen, masks], logits, 1e-4)


def test_split_graphs_without_a_wanted_mask_and_with_mask_prompts(fp32):
    side = fp32.model.config.mask_size
    none = torch.zeros(0, dtype=torch.long)
    assert split_of(fp32, some_prompts(1, 2, 1), none, none)[0].shape == (0, side, side)
    prompts = some_prompts(1, 2, 1, side)
    (wanted, wanted_iou), _ = fp32.decode(prompts)
    logits, iou = split_of(fp32, prompts, torch.tensor([1, 0]), torch.tensor([2, 3]))
    assert_agree("fp32", wanted_iou[0], iou, 1e-4)
    assert_agree("fp32", wanted[0, [1, 0], [2, 3]], logits, 1e-4)


def test_a_folder_of_before_the_split_says_export_again_and_only_then(copied):
    values = json.loads((copied / "model.json").read_text())
    for graph in ("prepare", "predict", "upscale"):
        (copied / values["graphs"].pop(graph)["file"]).unlink()
    (copied / "model.json").write_text(json.dumps(values))
    runtime = OnnxRuntime(copied, threads=1)
    embeddings = runtime.encode(torch.zeros(1, 3, 64, 64))
    runtime.decode(embeddings, some_prompts(1, 2, 1))
    with pytest.raises(ExportError, match=r"has no prepare\.onnx.*export again") as refused:
        runtime.prepare(embeddings)
    assert "\n" not in str(refused.value)


# --- What lies in the files


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    """Constants of a graph."""
    return {value.name: value for value in onnx.load(path).graph.initializer}


def lies_in(graph: str, layer: str) -> bool:
    """Whether a layer belongs to a graph."""
    return layer.startswith("image_encoder.") == (graph == "encoder")


def weighted(model) -> list[str]:
    """Quantized layers with weights; attention's products stay float unless they are asked for."""
    return [name for name, entry in model.config.quantization.items() if "heads" not in entry]


@pytest.mark.parametrize("name", ALL)
def test_the_graphs_are_valid_and_their_free_sizes_are_named(request, name):
    exported = request.getfixturevalue(name)
    for graph in ("encoder", "decoder", "prepare", "predict", "upscale"):
        model = onnx.load(exported.path / f"{graph}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
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
    integer, float_products = 0, []
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
            assert makers[node.input[0]].op_type == "DequantizeLinear"
            integer += 1
    assert integer == sum(lies_in(graph, layer) for layer in weighted(exported.model))
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
    assert zero_points
    assert weights
    assert all(zero.dtype == np.int8 and not zero.any() for zero in weights)
    if name == "int8_tensorrt":
        assert all(zero.dtype == np.int8 and zero == 0 for zero in zero_points)
    else:
        assert all(zero.dtype == np.uint8 for zero in zero_points)
        assert len({int(zero) for zero in zero_points}) > 3
    # TensorRT refuses biases behind DequantizeLinear
    biases = [value for value in model.initializer if value.name.endswith(".bias")]
    assert all(value.data_type == TensorProto.FLOAT for value in biases)
    assert not any(value.data_type == TensorProto.INT32 for value in model.initializer)


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("name", CPU_INTEGER)
def test_onnx_runtime_multiplies_integers_in_every_quantized_layer(request, tmp_path, name, graph):
    exported = request.getfixturevalue(name)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(exported.path / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "optimised.onnx").graph
    makers = {output: node for node in model.node for output in node.output}
    integers = [n for n in model.node if n.op_type in ("MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "QGemm")]
    left = [
        next((given for given in node.input if given.endswith(".bias")), node.name)
        for node in model.node
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv")
        and makers.get(node.input[1]) is not None
        and makers[node.input[1]].op_type == "DequantizeLinear"
    ]
    layers = [layer for layer in weighted(exported.model) if lies_in(graph, layer)]
    assert left == []
    assert len(integers) == len(layers)


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
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    set_twin(simulated, False)
    set_products(simulated, [name])
    halve_positions(simulated)
    got, wanted = OnnxRuntime(out, threads=1).encode(pixels), TorchRuntime(simulated).encode(pixels).numpy()
    assert_agree("int8", wanted, got, 0)


def test_twins_and_products_are_integers_where_asked_for_and_labelled(
    small_config, make_sam, photo, tmp_path, monkeypatch
):
    model = make_sam(small_config)
    quantizer = quantize_model(model, [photo], QuantizeOptions(metric="minmax", prompts_per_image=4))
    twins = with_twins(quantizer)
    monkeypatch.setitem(to_onnx.SMALLEST_IOU, "int8", 0.85)
    asked = OnnxOptions("int8", twin=True, products="all")
    out, parity = export_onnx(model, tmp_path / "out", [photo], asked)
    assert parity.mask_iou > 0.9
    form = json.loads((out / "model.json").read_text())["integer_form"]
    assert form["twins_as_two_products"] == sorted(twins)
    assert form["float_products"] == form["twins_as_plain"] == []
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(out / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    nodes = every_node(onnx.load(tmp_path / "optimised.onnx").graph)
    integers = [node for node in nodes if node.op_type in ("MatMulIntegerToFloat", "QLinearMatMul")]
    # q, k, v, proj, lin1; two of lin2; q k^T and two of the twin attention weights
    assert len(integers) == 10


def test_what_stays_float_by_default_is_labelled(int8):
    form = json.loads((int8.path / "model.json").read_text())["integer_form"]
    products = {name for name, entry in int8.model.config.quantization.items() if "heads" in entry}
    assert set(form["float_products"]) == products
    assert products


def test_onnx_runtime_fuses_every_gelu(int8, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(int8.path / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
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


def test_the_manifest_says_what_was_written(fp32, int8):
    folder = ExportedFolder.read(int8.path)
    assert (folder.precision, folder.dialect) == ("int8", "cpu")
    assert folder.config == int8.model.config
    assert ExportedFolder.read(fp32.path).dialect is None
    values = json.loads((int8.path / "model.json").read_text())
    assert values["parity"] == int8.parity.as_dict()
    assert values["parity"]["mask_iou"] >= 0.95
    assert sorted(path.name for path in int8.path.iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "model.json",
        "predict.onnx",
        "prepare.onnx",
        "upscale.onnx",
    ]


# --- What is refused


def test_a_precision_that_the_checkpoint_does_not_have_is_refused(small_config, make_sam, photo, tmp_path):
    model = make_sam(small_config)
    with pytest.raises(ExportError, match="int8 needs a quantized checkpoint"):
        export_onnx(model, tmp_path / "out", [photo], OnnxOptions("int8"))
    with pytest.raises(ExportError, match="at least one picture"):
        export_onnx(model, tmp_path / "out", [], OnnxOptions("fp32"))
    quantize_model(model, [photo], QuantizeOptions(prompts_per_image=1))
    for precision in ("fp32", "fp16"):
        with pytest.raises(ExportError, match=f"with --precision int8, got {precision}"):
            export_onnx(model, tmp_path / "out", [photo], OnnxOptions(precision))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def old_graphs(monkeypatch, fp32):
    """An exporter that writes the graphs of `fp32`, whatever the model."""

    def write(spec, folder: Path):
        entry = ExportedFolder.read(fp32.path).graphs[spec.name]
        shutil.copy(fp32.path / entry["file"], folder)
        return entry

    monkeypatch.setattr(to_onnx, "_write", write)


def test_graphs_of_other_weights_are_refused_and_nothing_is_left(old_graphs, tiny_config, make_sam, photo, tmp_path):
    with pytest.raises(ExportError, match="the fp32 export disagrees with torch: mean mask IoU 0"):
        export_onnx(make_sam(tiny_config, seed=1), tmp_path / "out", [photo], OnnxOptions())
    assert list(tmp_path.iterdir()) == []
    # the same exporter with the right weights passes
    export_onnx(make_sam(tiny_config, seed=0), tmp_path / "out", [photo], OnnxOptions())
    assert is_exported_folder(tmp_path / "out")


def test_a_miss_leaves_an_earlier_export_as_it_was(old_graphs, tiny_config, make_sam, photo, tmp_path, monkeypatch):
    out, _ = export_onnx(make_sam(tiny_config), tmp_path / "out", [photo], OnnxOptions())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setitem(to_onnx.SMALLEST_IOU, "fp32", 1.1)
    with pytest.raises(ExportError, match=r"is below 1\.1; nothing was written"):
        export_onnx(make_sam(tiny_config), out, [photo], OnnxOptions())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- Exported folders


@pytest.fixture
def copied(fp32, tmp_path) -> Path:
    """A copy of an exported folder, to be damaged."""
    return Path(shutil.copytree(fp32.path, tmp_path / "copy"))


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_a_changed_or_missing_graph_is_refused(copied, graph):
    file = copied / f"{graph}.onnx"
    file.write_bytes(file.read_bytes() + b"\0")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"{graph}\.onnx is missing or was changed .* export again"):
            ExportedFolder.read(copied)
        file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[]", b"{}", b'{"config": 3, "precision": "fp32", "dialect": null, "graphs": {}}'],
    ids=["empty", "cut", "binary", "list", "no entries", "config is a number"],
)
def test_a_broken_manifest_is_refused(copied, content):
    (copied / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        ExportedFolder.read(copied)


def test_a_manifest_whose_graphs_lack_their_file_is_refused(copied):
    values = json.loads((copied / "model.json").read_text())
    del values["graphs"]["encoder"]["sha256"]
    (copied / "model.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"model\.json"):
        ExportedFolder.read(copied)


def test_a_folder_without_a_manifest_is_no_export(copied):
    assert is_exported_folder(copied)
    (copied / "model.json").unlink()
    assert not is_exported_folder(copied)
    with pytest.raises(CheckpointError, match=r"model\.json cannot be read"):
        OnnxRuntime(copied)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="has a CUDA provider")
def test_cuda_without_its_provider_is_refused(fp32):
    with pytest.raises(BackendUnavailableError, match="use --device cpu"):
        OnnxRuntime(fp32.path, device="cuda")


def test_what_quantizing_skips_is_what_stays_float(int8, small_config, make_sam):
    model = make_sam(small_config)
    prepare_for_quantization(model)
    layers = {name for name, module in model.named_modules() if quantizable(module)}
    assert {name.split(".")[0] for name in layers - set(int8.model.config.quantization)} == {"prompt_encoder"}
