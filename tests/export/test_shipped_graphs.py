"""The graphs that ship, against nano quantized and exported anew: they are the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from PIL import Image

from sam_edge.export.to_onnx import OnnxOptions, write_encoder
from sam_edge.export.unsigned import note_signs
from sam_edge.models.quantized import prepare_for_quantization
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.quantize.ptq import layers_to_quantize
from sam_edge.runtimes.clipping import clips_products, without_sign
from sam_edge.runtimes.folder import ExportedFolder, shipped_graphs
from sam_edge.runtimes.onnx_runtime import OnnxRuntime, session_options
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.known import shipped_folder
from tests.grids import constants, quantizers

MOST_ERROR = 0.02
"""Of an embedding's norm: a value that rounds to the other side moves what follows."""


def grids(file: Path) -> dict[str, np.ndarray]:
    """Every weight, scale and zero point of a graph's quantizers."""
    graph = onnx.load(file).graph
    known = constants(graph)
    taken = {name for node in quantizers(graph) for name in node.input if name in known}
    return {name: numpy_helper.to_array(known[name]) for name in taken}


def test_every_layer_of_nano_that_can_is_in_integers() -> None:
    """But for what embeds mask prompts, which calibration does not reach."""
    model = load_model("nano")
    prepare_for_quantization(model)
    folder = shipped_graphs("nano")
    assert folder is not None
    quantized = ExportedFolder.read(folder).config.quantization
    assert quantized is not None
    wanted = {name for name in layers_to_quantize(model, ()) if "mask_downscaling" not in name}
    assert set(quantized) == wanted


@pytest.mark.slow
def test_the_encoder_that_ships_is_what_its_weights_become(shared_data: Path, tmp_path: Path) -> None:
    """By the first command of `make ship`, on the photos it names."""
    photos = shared_data / "coco128"
    command = ["quantize", "nano", "--images", str(photos), "--out", str(tmp_path / "integers")]
    # sums in another order move what is searched by them
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "sam_edge", *command], env=alone, check=True)
    integers = load_model(tmp_path / "integers")
    folder = shipped_graphs("nano")
    assert folder is not None
    anew = write_encoder(integers, tmp_path, OnnxOptions("int8", products="none"))
    wanted, found = grids(folder / "encoder.onnx"), grids(anew)
    assert found.keys() == wanted.keys()
    assert len(found) > 100
    for name, value in wanted.items():
        assert value.dtype == found[name].dtype
        np.testing.assert_array_equal(value, found[name])
    with Image.open(shipped_folder("sample") / "photo.jpg") as image:
        pixels, _ = to_pixels(np.array(image), ExportedFolder.read(folder).config)
    graph = without_sign(anew, note_signs(anew)) if clips_products() else anew
    session = ort.InferenceSession(graph, session_options({"integers": True}), providers=["CPUExecutionProvider"])
    runtime = OnnxRuntime(folder)
    shipped = runtime.host(runtime.encode(pixels))
    (again,) = session.run(None, {"pixels": pixels})
    torch = TorchRuntime(integers)
    simulated = torch.host(torch.encode(pixels))
    for other in (again, simulated):
        assert np.linalg.norm(other - shipped) < MOST_ERROR * np.linalg.norm(shipped)
