"""sam_edge.export.kernel_notes: which nodes of an encoder are its attentions."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from sam_edge.export import to_onnx
from sam_edge.export.graphs import encoder_graph
from sam_edge.export.kernel_notes import MARKS
from sam_edge.export.to_onnx import OnnxOptions
from sam_edge.kernels.library import library_file
from sam_edge.models import attention
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.clipping import clips_products, without_sign
from sam_edge.runtimes.kernels import with_kernels

INT8 = QuantizeOptions(metric="minmax", prompts_per_image=4)
FORMS = {"whole": ("fp32", "none"), "bands": ("fp32", "none"), "integers": ("int8", "all")}


@pytest.mark.parametrize("form", ["whole", "bands", pytest.param("integers", marks=pytest.mark.slow)])
def test_the_attention_of_each_block_is_noted(form, tiny_config, make_sam, photo, tmp_path, monkeypatch) -> None:
    """Of a window that is filled up and of a global block, in every form of attention that graphs have."""
    precision, products = FORMS[form]
    if form == "bands":
        monkeypatch.setattr(attention, "SMALLEST_BANDED", tiny_config.grid**2)
    model = make_sam(tiny_config)
    if precision == "int8":
        quantize_model(model, [photo], INT8)
    to_onnx._take_form(model, OnnxOptions(precision, products=products))
    entry = to_onnx._write(encoder_graph(model, torch.float32), tmp_path)
    file = tmp_path / entry["file"]
    notes = [note for note in entry["kernels"] if note["operator"] == "PositionalAttention"]
    graph = onnx.load(file)
    assert {opset.domain for opset in graph.opset_import} == {""}
    assert not any(node.domain == MARKS for node in graph.graph.node)
    places = [at for note in notes for start, length in note["nodes"] for at in range(start, start + length)]
    assert len(set(places)) == len(places) <= len(graph.graph.node)
    for note, block in zip(notes, tiny_config.blocks, strict=True):
        assert note["attributes"] == {"heads": block.heads, "scale": pytest.approx((block.qk / block.heads) ** -0.5)}
        kinds = {graph.graph.node[at].op_type for start, length in note["nodes"] for at in range(start, start + length)}
        assert kinds & {"Softmax", "Scan"}
        # projections are no part of it
        assert not kinds & {"Conv", "LayerNormalization", "Gemm"}
    if library_file() is not None:
        agrees_with_the_kernel(file, entry, tiny_config.image_size)


def agrees_with_the_kernel(file, entry, side: int) -> None:
    """What is noted is what the kernel computes."""
    content = file.read_bytes()
    if "unsigned" in entry and clips_products():
        content = without_sign(file, entry["unsigned"])
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library_file()))
    wanted, got = (
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})[0]
        for graph in (content, with_kernels(content, entry["kernels"]))
    )
    # the kernel does not round scores and weights to integers
    most = 0.05 if entry["integers"] else 1e-5
    assert np.abs(got - wanted).max() < most * np.abs(wanted).max()


@pytest.mark.slow
def test_halves_are_left_to_the_runtime(fp16) -> None:
    assert "kernels" not in fp16.runtime.folder.graphs["encoder"]
