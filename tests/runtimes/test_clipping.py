"""sam_edge.runtimes.clipping: integer graphs as a processor computes them rightly that clips sums of their products."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sam_edge.errors import ExportError
from sam_edge.export.unsigned import probe
from sam_edge.runtimes import clipping, folder
from sam_edge.runtimes.clipping import PROBE, clips_products, without_sign
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.segment.prompts import Prompts
from tests.grids import constants, grids, quantizers

SLOW = pytest.mark.slow
INTEGER = ["int8", pytest.param("int8_decoder", marks=SLOW), pytest.param("int8_tensorrt", marks=SLOW)]


@pytest.fixture(params=[True, False], ids=["clips", "does not clip"])
def clips(request, monkeypatch: pytest.MonkeyPatch) -> bool:
    """This processor, and one that answers otherwise."""
    monkeypatch.setattr(folder, "clips_products", lambda: request.param)
    return request.param


def test_the_shipped_probe_is_the_workshops() -> None:
    assert PROBE.read_bytes() == probe()


def test_a_processor_that_clips_is_told_by_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of 255 and 127 do not fit into 16 bits: clipped, each pair of the 64 gives 32767."""
    import onnxruntime as ort

    for answer, wanted in ((255 * 127 * 64, False), (32767 * 32, True)):
        product = np.full((16, 16), answer, np.int32)

        class Session:
            def __init__(self, *_: object, product: np.ndarray = product, **__: object) -> None:
                self.product = product

            def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
                assert (given["left"] == 255).all()
                return [self.product]

        monkeypatch.setattr(ort, "InferenceSession", Session)
        assert clips_products.__wrapped__() == wanted


@pytest.mark.parametrize("name", INTEGER)
def test_every_quantizer_holds_the_same_values_without_signs(request, name: str) -> None:
    exported = ExportedFolder.read(request.getfixturevalue(name).path)
    noted = {graph: entry["unsigned"] for graph, entry in exported.graphs.items() if entry["integers"]}
    assert "encoder" in noted
    for graph, places in noted.items():
        signed = onnx.load(exported.graph_file(graph))
        unsigned = onnx.load_from_string(without_sign(exported.graph_file(graph), places))
        onnx.checker.check_model(unsigned, full_check=True)
        assert grids(unsigned) == grids(signed)
        held = constants(unsigned.graph)
        kinds = {held[given].data_type for node in quantizers(unsigned.graph) for given in node.input if given in held}
        # scales, and integers without sign
        assert kinds == {TensorProto.FLOAT, TensorProto.UINT8}
        # nothing else has changed
        assert unsigned.graph.node == signed.graph.node
        for name, tensor in constants(signed.graph).items():
            assert held[name] == tensor or tensor.data_type == TensorProto.INT8


def test_without_signs_the_answers_are_torchs_on_any_processor(int8, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "clips_products", lambda: True)
    runtime = OnnxRuntime(int8.path, threads=1)
    side = int8.model.config.image_size
    pixels = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    wanted, got = int8.torch.host(int8.torch.encode(pixels)), runtime.encode(pixels)
    # to a few steps of its grids
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(got - wanted).mean() < 0.005 * np.abs(wanted).max()


def test_graphs_lose_their_signs_where_products_are_clipped_and_only_integer_ones(int8, fp32, clips: bool) -> None:
    exported = ExportedFolder.read(int8.path)
    read = exported.graph_for_this_cpu("encoder")
    assert isinstance(read, bytes) == clips
    assert read == without_sign(exported.graph_file("encoder"), exported.graphs["encoder"]["unsigned"]) or not clips
    # its arithmetic is float
    assert exported.graph_for_this_cpu("decoder") == exported.graph_file("decoder")
    assert isinstance(ExportedFolder.read(fp32.path).graph_for_this_cpu("encoder"), Path)


def test_a_folder_of_before_there_were_notes_is_refused_where_products_are_clipped(
    int8, tmp_path: Path, clips: bool
) -> None:
    old = Path(shutil.copytree(int8.path, tmp_path / "old"))
    values = json.loads((old / "model.json").read_text())
    del values["graphs"]["encoder"]["unsigned"]
    (old / "model.json").write_text(json.dumps(values))
    runtime, side = OnnxRuntime(old, threads=1), int8.model.config.image_size
    pixels = np.zeros((1, 3, side, side), np.float32)
    # graphs of float arithmetic need no notes
    prompts = Prompts.build(np.full((1, 1, 1, 2), 9.0, np.float32), np.ones((1, 1, 1), np.int64))
    runtime.decode(int8.embeddings(), prompts)
    if not clips:
        runtime.encode(pixels)
        return
    with pytest.raises(
        ExportError, match=r"encoder\.onnx was exported by an earlier version.*: export again"
    ) as refused:
        runtime.encode(pixels)
    assert "\n" not in str(refused.value)


def test_this_processor_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clips_products()
    monkeypatch.setattr(clipping, "PROBE", Path("nowhere"))
    assert isinstance(clips_products(), bool)
