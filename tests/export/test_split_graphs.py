"""The decoder in three graphs: everything mode on them, and what float32 leaves of float64 at real widths."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from sam_edge.export.parity import parity_prompts, split_logits
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.models.prompts import on_device
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.openvino_runtime import OpenVinoRuntime
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import uniform_blocks
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.frame import Frame
from sam_edge.segment.known import KNOWN
from sam_edge.segment.matching import agreement
from sam_edge.segment.prompts import Prompts
from sam_edge.segment.runtime import Runtime

LOW = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": -1.0}
MODES = {
    "binary_mask": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "uncompressed_rle": {"min_mask_region_area": 20},
    "coco_rle": {"strategy": "hierarchical", "tau": 0.5, "points_per_side": 8},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_everything_is_found_on_graphs_as_in_torch(fp32, photo, name, mode):
    if name == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    runtime = fp32.runtime if name == "onnxruntime" else OpenVinoRuntime(fp32.path, threads=1)
    options = {**LOW, **MODES[mode], "output_mode": mode}
    wanted, got = (EverythingGenerator(one, **options).generate(photo) for one in (fp32.torch, runtime))
    assert len(wanted) == len(got) > 3
    assert [record["point_coords"] for record in wanted] == [record["point_coords"] for record in got]
    assert [type(record["segmentation"]) for record in wanted] == [type(record["segmentation"]) for record in got]
    assert agreement(wanted, got) > 0.999


@pytest.fixture(scope="module", params=["nano", "vit_b"])
def model(request, make_sam) -> EdgeSam:
    """Trained weights, and SAM-B's decoder with random ones behind an encoder that nobody asks."""
    if request.param == "nano":
        return load_model("nano")
    return make_sam(KNOWN["vit_b"].config.replace(blocks=uniform_blocks(1, 32, 2, (0,), window=0)))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    images = [SyntheticScenes(1)[0].image]
    return export_onnx(copy.deepcopy(model), tmp_path_factory.mktemp("export") / "model", images, OnnxOptions())[0]


@pytest.fixture(scope="module")
def asked(model) -> tuple[Tensor, Prompts, np.ndarray]:
    """An image embedding, points and boxes about it, and the logits of float64.

    The embedding is the same for all: through the decoder, what runtimes' encoders differ by grows
    thirtyfold.
    """
    config = model.config
    shape = (1, config.decoder.dim, config.grid, config.grid)
    embeddings = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    prompts = parity_prompts(Frame.of(480, 640, config.image_size))
    given = on_device(prompts, "cpu")
    exact = copy.deepcopy(model).double()
    # positions are float32 wherever the decoder runs
    encoding = "positional_encoding_gaussian_matrix"
    setattr(exact.prompt_encoder.pe_layer, encoding, getattr(model.prompt_encoder.pe_layer, encoding))
    with torch.inference_mode():
        logits, _ = exact.decoder(embeddings.double(), given.coords, given.labels)
    return embeddings, prompts, logits[0].numpy()


def largest_error(runtime: Runtime, asked: tuple[Tensor, Prompts, Float64[np.ndarray, "n 4 h w"]]) -> float:
    """Of the logits that come in three parts."""
    embeddings, prompts, exact = asked
    given = embeddings if isinstance(runtime, TorchRuntime) else embeddings.numpy()
    return float(np.abs(split_logits(runtime, given, prompts).astype(np.float64) - exact).max())


@pytest.mark.slow
def test_torch_and_onnx_runtime_are_as_exact_as_float32_lets_them(model, folder, asked):
    assert np.abs(asked[2]).max() > 2
    assert largest_error(TorchRuntime(copy.deepcopy(model)), asked) < 1e-4
    assert largest_error(OnnxRuntime(folder, threads=1), asked) < 1e-4


@pytest.mark.slow
def test_openvino_is_as_exact_as_float32_lets_it(folder, asked):
    pytest.importorskip("openvino", reason="openvino is not installed")
    assert largest_error(OpenVinoRuntime(folder, threads=1), asked) < 1e-4
