"""sam_edge.studies.integers: who races, and how each is opened."""

import onnx
import pytest

from sam_edge.bench.integers import race
from sam_edge.errors import BenchError
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.folder import is_exported_folder
from sam_edge.studies import integers


@pytest.fixture
def lineage(tiny_slim, tmp_path, photo) -> tuple[str, str]:
    """Folders of a float model and of the same in 8 bits."""
    parent = save_checkpoint(tiny_slim, tmp_path / "float")
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax"))
    return str(parent), str(save_checkpoint(tiny_slim, tmp_path / "int8"))


def test_ours_race_as_sam_edge_opens_them_and_others_by_their_runtime_alone(lineage, monkeypatch):
    opened, integer = {}, {}

    def watched(contenders, **settings):
        for name, contender in contenders.items():
            kinds = {tensor.data_type for tensor in onnx.load(contender.graph).graph.initializer}
            opened[name], integer[name] = is_exported_folder(contender.file), onnx.TensorProto.INT8 in kinds
        return race(contenders, **settings)

    monkeypatch.setattr(integers, "race", watched)
    found = integers.encoder_race(*lineage, "synthetic:2", runtimes=["onnxruntime"], pictures=1, turns=1)
    assert opened == {name: name.endswith(("int8", "float")) for name in found}
    assert integer == {name: not name.endswith("float") for name in found}
    assert all(min(turns.wall_ms) > 0 for turns in found.values())
    assert found["onnxruntime float"].agreement == pytest.approx(1, abs=1e-3)
    assert all(0 < turns.agreement <= 1 for turns in found.values() if turns.agreement is not None)
    assert None not in [turns.agreement for turns in found.values()]


def test_the_race_wants_a_float_model_and_a_quantized_one(lineage):
    parent, quantized = lineage
    for pair in ((quantized, quantized), (parent, parent), (quantized, parent)):
        with pytest.raises(BenchError, match="a float MODEL and a quantized one"):
            integers.encoder_race(*pair, "synthetic:2", runtimes=["onnxruntime"])
