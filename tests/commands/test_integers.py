"""`bench-integers`: what takes part in the race of integer encoders."""

import onnx
import pytest

from sam_edge.bench.integers import race
from sam_edge.commands import integers
from sam_edge.errors import BenchError
from sam_edge.export import unsigned
from sam_edge.models.checkpoint import save_checkpoint
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model


@pytest.fixture
def lineage(tiny_slim, tmp_path, photo) -> tuple[str, str]:
    """Folders of a float model and of the same in 8 bits."""
    parent = save_checkpoint(tiny_slim, tmp_path / "float")
    quantize_model(tiny_slim, [photo], QuantizeOptions(metric="minmax"))
    return str(parent), str(save_checkpoint(tiny_slim, tmp_path / "int8"))


@pytest.mark.parametrize("clips", [True, False], ids=["clips", "does not clip"])
def test_the_integer_graph_races_as_this_cpu_computes_it_rightly(lineage, monkeypatch, clips):
    signs = {}

    def watched(contenders, **settings):
        for name, contender in contenders.items():
            kinds = {tensor.data_type for tensor in onnx.load(contender.file).graph.initializer}
            signs[name] = onnx.TensorProto.INT8 in kinds
        return race(contenders, **settings)

    monkeypatch.setattr(integers, "race", watched)
    monkeypatch.setattr(unsigned, "clips_products", lambda: clips)
    found = integers.encoder_race(*lineage, "synthetic:2", runtimes=["onnxruntime"], pictures=1, turns=1)
    assert signs["onnxruntime int8"] == (not clips)
    assert not signs["onnxruntime float"]
    assert found.keys() == signs.keys()
    assert all(min(turns.wall_ms) > 0 for turns in found.values())


def test_the_race_wants_a_float_model_and_a_quantized_one(lineage):
    parent, quantized = lineage
    for pair in ((quantized, quantized), (parent, parent), (quantized, parent)):
        with pytest.raises(BenchError, match="a float MODEL and a quantized one"):
            integers.encoder_race(*pair, "synthetic:2", runtimes=["onnxruntime"])
