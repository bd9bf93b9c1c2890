"""Building engines: on any machine, for the targets asked, out of graphs that TensorRT takes."""

import ctypes
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export.to_onnx import DecoderArithmetic, OnnxOptions, Precision, export_onnx
from sam_edge.export.to_tensorrt import (
    BUILD_LOG,
    TrtOptions,
    _printing_to,
    build_engines,
    float32_bytes,
    profile_shapes,
    resolve_targets,
    text_bytes,
    timing_cache,
)
from sam_edge.files import sha256_of
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.engines import (
    ENGINES,
    Engine,
    choose_engines,
    read_engines,
    require_shape,
    require_version,
)
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


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> ExportedFolder:
    """The same model's float graphs."""
    return _export(tmp_path_factory.mktemp("exports") / "fp32", "fp32")


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
    options = TrtOptions(max_sets=8, max_points=4)
    engines = build_engines(int8, tmp_path / "engines", options, _images(), on_build=heard.append)
    out = ExportedFolder.read(tmp_path / "engines")
    assert heard == engines == read_engines(out.path)
    assert [engine.file for engine in engines] == [
        f"{graph}.{target}.engine" for graph in GRAPHS for target in ("sm86", "sm89")
    ]
    for engine in engines:
        assert (out.path / engine.file).stat().st_size == engine.bytes > 0
        assert engine.sha256 == sha256_of(out.path / engine.file)
        assert engine.onnx_sha256 == out.graphs[engine.graph]["sha256"]
        assert (engine.precision, engine.flavor, engine.state) == ("int8", "rtx", "built, not run")
        assert engine.onnx == f"{engine.graph}.int8.onnx"
        assert bool(engine.note) == (engine.bytes > float32_bytes(out.graph_file(engine.graph)))
    typed = json.loads((out.path / ENGINES).read_text())["typed"]
    assert typed["parity"]["mask_iou"] >= typed["smallest_iou"] == 0.95
    assert "built, not run" in (out.path / "README.md").read_text()
    log = (out.path / BUILD_LOG).read_text()
    assert [line[3:] for line in log.splitlines() if line.startswith("== ")] == [
        f"{graph} for {target}" for graph in GRAPHS for target in ("sm86", "sm89")
    ]
    assert "info: Total Weights Memory" in log
    assert engines[2].shapes["point_coords"] == {"min": [1, 1, 1, 2], "opt": [1, 8, 2, 2], "max": [1, 8, 4, 2]}
    assert set(choose_engines(out, "sm89")) == set(GRAPHS)
    embeddings = OnnxRuntime(out.path, threads=1).encode(np.zeros((1, 3, 64, 64), np.float32))
    assert embeddings.shape == (1, 256, 4, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_float_graphs_build_in_every_precision(floats: ExportedFolder, precision: str, tmp_path: Path) -> None:
    options = TrtOptions(targets=("sm89",), max_sets=8, max_points=4, precision=precision)
    engines = build_engines(floats, tmp_path / "engines", options, _images())
    assert [engine.precision for engine in engines] == [precision] * len(GRAPHS)
    sizes = {engine.graph: (tmp_path / "engines" / engine.onnx).stat().st_size for engine in engines}
    if precision != "fp32":
        assert sizes["encoder"] < 0.6 * floats.graph_file("encoder").stat().st_size
    # the same folder still runs where there is no GPU
    OnnxRuntime(tmp_path / "engines", threads=1).encode(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_a_decoder_in_integers_builds(tmp_path: Path) -> None:
    exported = _export(tmp_path / "graphs", "int8", "integers")
    engines = build_engines(exported, tmp_path / "engines", TrtOptions(targets=("sm89",)), _images())
    assert [engine.precision for engine in engines] == ["int8"] * len(GRAPHS)


@pytest.mark.usefixtures("rtx")
def test_engines_may_be_built_into_the_exported_folder_itself(tmp_path: Path) -> None:
    exported = _one_node("Relu", tmp_path / "graphs")
    build_engines(exported, exported.path, TrtOptions(targets=("sm89", "sm89"), precision="fp32"))
    assert sorted(path.name for path in exported.path.iterdir()) == [
        "README.md",
        "build.log",
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
        build_engines(exported, tmp_path / "engines", TrtOptions(targets=("sm89",), precision="fp32"))
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


def test_precisions_that_a_model_has_not_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for held, asked, told in (
        ("int8", "fp16", "is quantized, and its engines are int8, got --precision fp16: leave it out"),
        ("fp32", "int8", "needs a quantized model, .*: run `sam-edge quantize` first"),
        ("fp16", "fp16", "was exported in fp16, .*: give the checkpoint, or its export with --precision fp32"),
    ):
        exported = ExportedFolder(tmp_path, CONFIG, held, "tensorrt" if held == "int8" else None, {})
        with pytest.raises(ExportError, match=told) as refused:
            build_engines(exported, tmp_path / "engines", TrtOptions(precision=asked))
        assert "\n" not in str(refused.value)


def test_fp8_is_refused_for_a_gpu_that_has_none_and_built_for_those_that_have() -> None:
    library = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__={"SM86": 0, "SM89": 1}), __version__="0")
    with pytest.raises(ExportError, match="target 'sm86' has no FP8: leave it out, or use --precision int8 or fp16"):
        resolve_targets(library, TrtOptions(targets=("sm89", "sm86"), precision="fp8"))
    assert resolve_targets(library, TrtOptions(precision="fp8")) == ("sm89",)
    assert resolve_targets(library, TrtOptions()) == ("sm86", "sm89")


ENGINE = Engine(
    "decoder.sm89.engine",
    "decoder",
    "sm89",
    "rtx",
    "1.7.1",
    "fp16",
    profile_shapes({"point_labels": ["batch", "sets", "points"]}, TrtOptions(max_sets=8)),
    "0",
    "1",
    1.0,
    1,
)


def test_an_engine_of_another_version_is_refused_with_both() -> None:
    require_version(ENGINE, "1.7.1")
    with pytest.raises(
        BackendUnavailableError, match=r"by tensorrt_rtx 1\.7\.1 and 1\.8\.0 is here: build it again, or"
    ):
        require_version(ENGINE, "1.8.0")


@pytest.mark.parametrize("shape", [(2, 8, 16), (1, 9, 16), (1, 8, 17), (1, 0, 1), (1, 8)])
def test_a_shape_outside_of_the_profile_is_refused_with_what_it_takes(shape: tuple[int, ...]) -> None:
    require_shape(ENGINE, "point_labels", (1, 8, 16))
    with pytest.raises(ExportError, match=r"takes point_labels from \[1, 1, 1\] to \[1, 8, 16\], got .*--max-sets"):
        require_shape(ENGINE, "point_labels", shape)


def test_timings_are_kept_by_version_and_gpu_and_given_to_the_next_build(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path))

    class Config:
        """A builder's configuration that timed one more thing than it was given."""

        def create_timing_cache(self, content: bytes) -> bytes:
            return content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> None:
            assert not ignore_mismatch
            self.given = cache

        def get_timing_cache(self) -> "Config":
            return self

        def serialize(self) -> memoryview:
            return memoryview(self.given + b"x")

    given = []
    for version, target in (("10.3", "sm87"), ("10.3", "sm87"), ("10.13", "sm87"), ("10.3", "sm86")):
        config = Config()
        with timing_cache(config, "standard", version, target):
            pass
        given.append(config.given)
    assert given == [b"", b"x", b"", b""]


def test_an_engines_text_and_a_graphs_float_size_are_counted(tmp_path: Path) -> None:
    assert text_bytes(b"\0" * 9 + b"a" * 20 + b"\xff" + b"short" + b"\0" + b"b = 1;\n" * 5) == 55
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"])],
        "one",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])],
        [numpy_helper.from_array(np.zeros(1000, np.int8), "w"), numpy_helper.from_array(np.float32(1), "s")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "one.onnx")
    assert float32_bytes(tmp_path / "one.onnx") == (tmp_path / "one.onnx").stat().st_size + 3000


def test_what_a_library_prints_goes_to_the_log_and_not_to_stdout(tmp_path: Path, capfd) -> None:
    with (tmp_path / "log").open("w") as log:
        with _printing_to(log):
            # as a library in C does, past Python's stdout
            ctypes.CDLL(None).puts(b"WARNING: from C")
        print("{}")
    assert (tmp_path / "log").read_text() == "WARNING: from C\n"
    assert capfd.readouterr().out == "{}\n"
