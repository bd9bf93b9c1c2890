"""Global attention in exported encoders: torch's, and never a whole matrix."""

from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from sam_edge.export import banded, to_onnx
from sam_edge.export.graphs import encoder_graph, to_half
from sam_edge.export.to_onnx import OnnxOptions, write_encoder
from sam_edge.export.unsigned import note_signs
from sam_edge.models import attention
from sam_edge.models.quantized import prepare_for_quantization
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.clipping import clips_products, without_sign

INT8 = QuantizeOptions(metric="minmax", prompts_per_image=4)


@pytest.fixture
def config(tiny_config, monkeypatch):
    """A ViT of one global block of 256 tokens, which attends in three bands, the last of them smaller."""
    config = tiny_config.replace(patch_size=4, blocks=tiny_config.blocks[1:])
    monkeypatch.setattr(attention, "SMALLEST_BANDED", config.grid**2)
    monkeypatch.setattr(banded, "BAND", 100)
    return config


@pytest.fixture(
    params=["fp32", "int8", *(pytest.param(form, marks=pytest.mark.slow) for form in ("fp16", "int8 tensorrt"))]
)
def written(request, config, make_sam, photo, tmp_path):
    """An encoder in the form that its graph has, and the graph: products stay float in all of them."""
    model = make_sam(config)
    if request.param == "fp16":
        prepare_for_quantization(model)
        return model, tmp_path / to_onnx._write(encoder_graph(to_half(model), torch.float16), tmp_path)["file"]
    precision, _, dialect = request.param.partition(" ")
    if precision == "int8":
        quantize_model(model, [photo], INT8)
    options = OnnxOptions(precision, dialect or "cpu", products="none")
    return model, write_encoder(model, tmp_path, options)


def largest(file: Path) -> int:
    """Elements per item of the largest value that a node gives."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True, data_prop=True).graph
    constants = {value.name for value in graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in graph.value_info if value.name not in constants]
    return max(prod(size.dim_value or 1 for size in shape) for shape in shapes)


@pytest.mark.parametrize(("largest", "bands"), [(1 << 26, 1), (40_000, None)])
def test_attention_for_tensorrt_is_whole_as_far_as_it_fits_and_the_same(
    largest, bands, config, make_sam, monkeypatch, tmp_path
):
    # heads x 256 x 256 scores
    bands = bands or -(-config.blocks[0].heads * 256**2 // 40_000)
    monkeypatch.setattr(banded, "LARGEST_WHOLE", largest)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    found = {}
    for name in ("cpu", "tensorrt"):
        (tmp_path / name).mkdir()
        model = make_sam(config)
        prepare_for_quantization(model)
        entry = to_onnx._write(encoder_graph(model, torch.float32), tmp_path / name, whole=name == "tensorrt")
        file = tmp_path / name / entry["file"]
        operators = [node.op_type for node in onnx.load(file).graph.node]
        assert operators.count("Softmax") == (bands if name == "tensorrt" else 3)
        (found[name],) = ort.InferenceSession(file).run(None, {"pixels": pixels})
    np.testing.assert_allclose(found["tensorrt"], found["cpu"], rtol=1e-4, atol=1e-5)


def test_banded_attention_is_torch_s_at_other_batch_sizes(written):
    model, file = written
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    half = next(model.image_encoder.parameters()).dtype == torch.float16
    with torch.inference_mode():
        wanted = model.image_encoder(pixels.half() if half else pixels).float().numpy()
    needs_it = model.config.quantization and clips_products()
    graph = without_sign(file, note_signs(file)) if needs_it else file
    (got,) = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels.numpy()})
    if half or model.config.quantization:
        assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
        assert np.abs(got - wanted).mean() < 0.005 * np.abs(wanted).max()
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_no_node_gives_as_much_as_an_attention_matrix_of_every_head(written, config, monkeypatch, make_sam, tmp_path):
    _, file = written
    tokens, heads = config.grid**2, config.blocks[0].heads
    assert heads * banded.BAND * tokens <= largest(file) < heads * tokens**2
    monkeypatch.setattr(attention, "SMALLEST_BANDED", tokens + 1)
    assert largest(write_encoder(make_sam(config), tmp_path, OnnxOptions())) >= heads * tokens**2


def test_bands_share_their_constants(config, make_sam, tmp_path, monkeypatch):
    def stored() -> int:
        return sum(
            value.ByteSize() for value in onnx.load(write_encoder(model(), tmp_path, OnnxOptions())).graph.initializer
        )

    def model():
        return make_sam(config)

    few = stored()
    monkeypatch.setattr(banded, "BAND", 10)
    # one edge for each of 23 more bands
    assert stored() - few < 23 * 100
