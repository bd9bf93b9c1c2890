"""Building engines: on any machine, for the targets asked, out of graphs that TensorRT takes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export.to_onnx import DecoderArithmetic, OnnxOptions, Precision, export_onnx
from sam_edge.export.to_tensorrt import TrtOptions, build_engines, profile_shapes
from sam_edge.files import sha256_of
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.engines import Engine, choose_engines, read_engines
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import DecoderConfig, ModelConfig, uniform_blocks

CONFIG = ModelConfig(
    arch="vit",
    image_size=64,
    blocks=uniform_blocks(1, 32, 2, (0,), window=0),
    # 256 wide, as SAM's: a narrower decoder's int8 weights are small enough to be folded by accident
    decoder=DecoderConfig(dim=256, depth=1, mlp=32),
)


GRAPHS = ("encoder", "decoder", "prepare", "predict", "upscale")


def _images() -> list[np.ndarray]:
    scenes = SyntheticScenes(2)
    return [scenes[0].image, scenes[1].image]


def _export(out: Path, precision: Precision, decoder: DecoderArithmetic = "float") -> ExportedFolder:
    model = EdgeSam(CONFIG)
    initialise(model, 0)
    if precision == "int8":
        quantize_model(model, _images(), QuantizeOptions(prompts_per_image=2))
    export_onnx(model, out, _images(), OnnxOptions(precision, "tensorrt", decoder=decoder))
    return ExportedFolder.read(out)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> ExportedFolder:
    """A quantized model's graphs in TensorRT's dialect: all that the float ones have, and Q/DQ."""
    return _export(tmp_path_factory.mktemp("exports") / "int8", "int8")


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def _folder_of(graph: onnx.ModelProto, folder: Path) -> ExportedFolder:
    """An exported folder of one graph, called the encoder."""
    folder.mkdir()
    onnx.save(graph, folder / "encoder.onnx")
    entry = {
        "file": "encoder.onnx",
        "sha256": sha256_of(folder / "encoder.onnx"),
        "inputs": {"pixels": ["batch", 4]},
        "outputs": {"embeddings": ["batch", 4]},
    }
    values = {
        "precision": "fp32",
        "dialect": None,
        "config": json.loads(CONFIG.to_json()),
        "graphs": {"encoder": entry},
    }
    (folder / "model.json").write_text(json.dumps(values))
    return ExportedFolder.read(folder)


def _one_node(operator: str, folder: Path) -> ExportedFolder:
    graph = helper.make_graph(
        [helper.make_node(operator, ["pixels"], ["embeddings"])],
        "one",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", 4])],
    )
    return _folder_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder)


@pytest.mark.usefixtures("rtx")
def test_int8_graphs_build_for_each_target_and_the_folder_still_runs_everywhere(
    int8: ExportedFolder, tmp_path: Path
) -> None:
    heard: list[Engine] = []
    engines = build_engines(int8, tmp_path / "engines", TrtOptions(max_sets=8, max_points=4), heard.append)
    out = ExportedFolder.read(tmp_path / "engines")
    assert heard == engines == read_engines(out.path)
    assert [engine.file for engine in engines] == [
        f"{graph}.{target}.engine" for graph in GRAPHS for target in ("sm86", "sm89")
    ]
    for engine in engines:
        assert (out.path / engine.file).stat().st_size == engine.bytes > 0
        assert engine.sha256 == sha256_of(out.path / engine.file)
        assert engine.onnx_sha256 == out.graphs[engine.graph]["sha256"]
        assert (engine.precision, engine.flavor) == ("int8", "rtx")
    assert engines[2].shapes["point_coords"] == {"min": [1, 1, 1, 2], "opt": [1, 8, 2, 2], "max": [1, 8, 4, 2]}
    assert set(choose_engines(out, "sm89")) == set(GRAPHS)
    embeddings = OnnxRuntime(out.path, threads=1).encode(np.zeros((1, 3, 64, 64), np.float32))
    assert embeddings.shape == (1, 256, 4, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("precision", "decoder"), [("fp32", "float"), ("fp16", "float"), ("int8", "integers")])
def test_other_graphs_build(precision: Precision, decoder: DecoderArithmetic, tmp_path: Path) -> None:
    exported = _export(tmp_path / "graphs", precision, decoder)
    engines = build_engines(exported, tmp_path / "engines", TrtOptions(targets=("sm89",), max_sets=8, max_points=4))
    assert [engine.precision for engine in engines] == [precision] * len(GRAPHS)


@pytest.mark.usefixtures("rtx")
def test_engines_may_be_built_into_the_exported_folder_itself(tmp_path: Path) -> None:
    exported = _one_node("Relu", tmp_path / "graphs")
    build_engines(exported, exported.path, TrtOptions(targets=("sm89", "sm89")))
    assert sorted(path.name for path in exported.path.iterdir()) == [
        "encoder.onnx",
        "encoder.sm89.engine",
        "engine.json",
        "model.json",
    ]
    ExportedFolder.read(exported.path)


@pytest.mark.usefixtures("rtx")
def test_what_the_parser_refuses_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    exported = _one_node("NonZero2", tmp_path / "graphs")
    with pytest.raises(ExportError, match=r"parser refuses encoder\.onnx: .*NonZero2") as refused:
        build_engines(exported, tmp_path / "engines", TrtOptions(targets=("sm89",)))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["graphs"]


@pytest.mark.usefixtures("rtx")
def test_an_unknown_target_is_refused_with_the_allowed_ones(tmp_path: Path) -> None:
    exported = _one_node("Relu", tmp_path / "graphs")
    with pytest.raises(ExportError, match=r"target 'sm90': .*allowed: sm75, sm80, sm86, sm89, sm120") as refused:
        build_engines(exported, tmp_path / "engines", TrtOptions(targets=("sm89", "sm90")))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "engines").exists()


def test_the_cpu_dialect_is_refused_before_any_library_is_needed(tmp_path: Path) -> None:
    exported = ExportedFolder(tmp_path, CONFIG, "int8", "cpu", {})
    with pytest.raises(ExportError, match="--dialect tensorrt"):
        build_engines(exported, tmp_path / "engines")


def test_limits_below_one_are_refused(tmp_path: Path) -> None:
    exported = ExportedFolder(tmp_path, CONFIG, "fp32", None, {})
    with pytest.raises(ExportError, match="--max-sets must be at least 1, got 0"):
        build_engines(exported, tmp_path / "engines", TrtOptions(max_sets=0))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_an_absent_library_says_how_to_install_it(tmp_path: Path) -> None:
    exported = ExportedFolder(tmp_path, CONFIG, "fp32", None, {})
    with pytest.raises(BackendUnavailableError, match=r"pip install 'sam-edge\[tensorrt\]' .*pypi\.nvidia\.com"):
        build_engines(exported, tmp_path / "engines", TrtOptions("standard"))


def test_profiles_span_free_sizes_and_keep_fixed_ones() -> None:
    shapes = profile_shapes({"x": ["batch", "sets", "points", 2], "y": [1, 3]}, TrtOptions(max_batch=4, max_points=1))
    assert shapes["x"] == {"min": [1, 1, 1, 2], "opt": [1, 64, 1, 2], "max": [4, 64, 1, 2]}
    assert shapes["y"] == {"min": [1, 3], "opt": [1, 3], "max": [1, 3]}
    # 8 heads x (5 + 1, 2 or 16 tokens), of 64 sets three masks each
    assert profile_shapes({"x": ["rows"], "y": ["wanted"]}, TrtOptions()) == {
        "x": {"min": [48], "opt": [56], "max": [168]},
        "y": {"min": [1], "opt": [192], "max": [256]},
    }
    with pytest.raises(ExportError, match="s20"):
        profile_shapes({"x": ["s20"]}, TrtOptions())
