"""Exported encoders attend in bands: the same values, and never a whole attention matrix of a global block."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import shape_inference

from sam_edge.export.to_onnx import OnnxOptions, write_encoder
from sam_edge.models import attention
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.segment.config import DecoderConfig, ModelConfig, uniform_blocks

TOKENS = 18 * 18
"""No multiple of a band."""


@pytest.fixture(scope="module")
def banded() -> Iterator[None]:
    """As few tokens as a test can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SMALLEST_BANDED", 256)
        patch.setattr(attention, "BAND", 100)
        yield


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    """One windowed block and one global block of many tokens."""
    blocks = uniform_blocks(2, 24, 2, (1,), window=5, mlp=32)
    return ModelConfig("slim_vit", 72, blocks, patch_size=4, decoder=DecoderConfig(32, mlp=48, mask_channels=8))


@pytest.fixture(scope="module")
def encoders(banded: None, config: ModelConfig, make_sam, photo: np.ndarray, tmp_path_factory) -> dict[str, Path]:
    """The same weights in float, and in integers but for attention."""
    files = {}
    for precision in ("fp32", "int8"):
        model = make_sam(config)
        if precision == "int8":
            quantize_model(model, [photo], QuantizeOptions(metric="minmax", prompts_per_image=2))
        files[precision] = write_encoder(
            model, tmp_path_factory.mktemp(precision), OnnxOptions(precision, products="none")
        )
    return files


@pytest.mark.parametrize("batch", [1, 3])
def test_bands_give_what_torch_gives(batch: int, encoders: dict[str, Path], config: ModelConfig, make_sam) -> None:
    pixels = torch.randn(batch, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = make_sam(config).encode(pixels).numpy()
    session = ort.InferenceSession(encoders["fp32"], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_no_value_of_a_graph_is_a_whole_attention_matrix(precision: str, encoders: dict[str, Path]) -> None:
    graph = shape_inference.infer_shapes(onnx.load(encoders[precision])).graph
    sizes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    # shapes are known of the attention's own values, or this would show nothing
    assert any(size[-1:] == [TOKENS] for size in sizes.values())
    assert not [name for name, size in sizes.items() if size[-2:] == [TOKENS, TOKENS]]
    assert sum(node.op_type == "Softmax" for node in graph.node) >= -(-TOKENS // 100)
