"""sam_edge.runtimes.kernels: exported graphs with kernels in place of the nodes that the export has noted."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from sam_edge.errors import BackendUnavailableError, ExportError
from sam_edge.export.unsigned import note_signs
from sam_edge.kernels.library import SWITCH, library_file
from sam_edge.runtimes import listing
from sam_edge.runtimes.folder import MANIFEST, graph_sha256
from sam_edge.runtimes.kernels import ATTENTIONS, DOMAIN, attention_alone, unrounded, with_kernels
from sam_edge.runtimes.onnx_runtime import OnnxRuntime
from sam_edge.runtimes.openvino_kernels import taken
from sam_edge.runtimes.openvino_runtime import OpenVinoRuntime

needs_kernels = pytest.mark.skipif(library_file() is None, reason="sam-edge was installed without a compiler")


def pixels(exported, batch: int = 2) -> np.ndarray:
    side = exported.model.config.image_size
    return np.random.default_rng(batch).normal(size=(batch, 3, side, side)).astype(np.float32)


EXPORTS = ["fp32", "int8", "tiny_vit_fp32", "tiny_vit_int8"]


@pytest.mark.parametrize(
    "wrong",
    [{"attributes": {"grid": "eight"}}, {"nodes": 3}, {"inputs": [7]}, {"operator": "Identity", "output": None}],
)
def test_a_note_that_no_graph_has_is_told_in_a_line(request, wrong: dict[str, object]) -> None:
    folder = request.getfixturevalue("fp32").runtime.folder
    note = {**folder.graphs["encoder"]["kernels"][0], **wrong}
    with pytest.raises(ExportError, match=r"do not fit .*: export it again"):
        with_kernels(folder.graph_file("encoder").read_bytes(), [note])


@pytest.mark.parametrize("name", EXPORTS)
def test_noted_nodes_become_operators_and_nothing_else_changes(request, name: str) -> None:
    folder = request.getfixturevalue(name).runtime.folder
    notes, file = folder.graphs["encoder"]["kernels"], folder.graph_file("encoder")
    plain, found = onnx.load(file), onnx.load_from_string(with_kernels(file.read_bytes(), notes))
    gone = {at for note in notes for start, length in note["nodes"] for at in range(start, start + length)}
    operators = [node for node in found.graph.node if node.domain == DOMAIN]
    assert [node for node in found.graph.node if node.domain != DOMAIN] == [
        node for at, node in enumerate(plain.graph.node) if at not in gone
    ]
    assert len(operators) == len(notes)
    kinds = {node.op_type for node in operators}
    assert kinds == {
        "BiasedAttention" if "tiny_vit" in name else "PositionalAttention",
        *(["GeluToIntegers"] if "int8" in name else []),
        *(["GeluOfIntegers"] if name == "tiny_vit_int8" else []),
    }
    noted = {note["output"]: note for note in notes}
    for node in operators:
        note = noted[node.output[0]]
        assert (node.op_type, list(node.input)) == (note["operator"], note["inputs"])
        wanted = {**note["attributes"], **({"rounded": 0} if node.op_type in ATTENTIONS else {})}
        assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == pytest.approx(wanted)
    assert {(one.domain, one.version) for one in found.opset_import} == {("", 20), (DOMAIN, 1)}
    for model in (plain, found):
        model.graph.ClearField("node")
        model.ClearField("opset_import")
    assert found == plain
    # every operator finds what it reads before it
    onnx.checker.check_model(onnx.load_from_string(with_kernels(file.read_bytes(), ())))


def test_products_that_float_layers_take_are_rounded_for_onnx_runtime_alone(tiny_vit_int8) -> None:
    folder = tiny_vit_int8.runtime.folder
    notes, file = folder.graphs["encoder"]["roundings"], folder.graph_file("encoder")
    plain, found = onnx.load(file), onnx.load_from_string(with_kernels(file.read_bytes(), unrounded(notes)))
    makers = {name: node for node in plain.graph.node for name in node.output}

    def of_integers(node: onnx.NodeProto | None) -> bool:
        products = ("Conv", "Gemm", "MatMul")
        sides = (
            [makers.get(name) for name in node.input[:2]] if node is not None and node.op_type in products else [None]
        )
        return all(side is not None and side.op_type == "DequantizeLinear" for side in sides)

    loose = []
    for after in (node for node in plain.graph.node if node.op_type == "DequantizeLinear"):
        before = makers.get(after.input[0])
        users = [node for node in plain.graph.node if after.output[0] in node.input]
        if before is not None and of_integers(makers.get(before.input[0])) and not any(map(of_integers, users)):
            loose.append((before.input[0], after.output[0]))
    assert loose
    assert loose == [(*note["inputs"], note["output"]) for note in notes]
    kept = [(node.op_type, node.input[0], node.output[0]) for node in found.graph.node if node.op_type == "Identity"]
    assert kept == [("Identity", *pair) for pair in loose]
    assert len(found.graph.node) == len(plain.graph.node) - len(loose)
    onnx.checker.check_model(found)


def test_openvino_leaves_out_what_is_rounded_for_onnx_runtime(tiny_vit_int8, tmp_path) -> None:
    pytest.importorskip("openvino")
    shutil.copytree(tiny_vit_int8.path, tmp_path / "same")
    manifest = json.loads((tmp_path / "same" / MANIFEST).read_text())
    entry, file = manifest["graphs"]["encoder"], tmp_path / "same" / "encoder.onnx"
    file.write_bytes(with_kernels(file.read_bytes(), unrounded(entry.pop("roundings"))))
    # which writes the file anew
    entry["unsigned"] = note_signs(file)
    entry["sha256"] = graph_sha256(file)
    (tmp_path / "same" / MANIFEST).write_text(json.dumps(manifest))
    noted, written = (OpenVinoRuntime(path, threads=1) for path in (tiny_vit_int8.path, tmp_path / "same"))
    np.testing.assert_array_equal(noted.encode(pixels(tiny_vit_int8)), written.encode(pixels(tiny_vit_int8)))


@needs_kernels
@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_change_no_more_than_rounding(request, name: str, threads: int) -> None:
    exported = request.getfixturevalue(name)
    fast, plain = (OnnxRuntime(exported.path, threads=threads, kernels=wanted) for wanted in (True, False))
    assert (fast.with_kernels, plain.with_kernels) == (("encoder",), ())
    for batch in (1, 3):
        got, wanted = (runtime.encode(pixels(exported, batch)) for runtime in (fast, plain))
        # sums in another order; in integers a value on the edge of a step may fall to its other side
        assert "int8" in name or not np.array_equal(got, wanted)
        # and products are of bfloat16 where the processor has it
        most = 0.03 if "int8" in name else 1e-5
        assert np.abs(got - wanted).max() < most * np.abs(wanted).max()


@needs_kernels
@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_openvino_takes_that_of_relative_positions(request, name: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    exported = request.getfixturevalue(name)
    fast, plain = (OpenVinoRuntime(exported.path, threads=2, kernels=wanted) for wanted in (True, False))
    assert (fast.with_kernels, plain.with_kernels) == (("encoder",), ())
    for batch in (1, 3):
        got, wanted = (runtime.encode(pixels(exported, batch)) for runtime in (fast, plain))
        assert not np.array_equal(got, wanted)
        # beside integers products are of bfloat16, and OpenVINO rounds to them after its own fusions
        most = 0.05 if "int8" in name else 1e-5
        assert np.abs(got - wanted).max() < most * np.abs(wanted).max()


@needs_kernels
def test_a_note_of_other_heads_is_an_error_of_openvinos_too(fp32, tmp_path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    folder = shutil.copytree(fp32.path, tmp_path / "other")
    values = json.loads((folder / MANIFEST).read_text())
    for note in values["graphs"]["encoder"]["kernels"]:
        note["attributes"]["heads"] = 16
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ExportError, match=r"OpenVINO refuses encoder\.onnx: "):
        OpenVinoRuntime(folder, threads=1).encode(pixels(fp32))


def test_wide_heads_of_float_graphs_are_left_to_openvino() -> None:
    narrow, wide = ({"operator": "PositionalAttention", "attributes": {"scale": width**-0.5}} for width in (32, 64))
    other = {"operator": "BiasedAttention", "attributes": {"scale": 1.0}}
    assert taken([narrow, wide, other], integers=False) == [narrow]
    assert taken([narrow, wide, other], integers=True) == [narrow, wide]


@needs_kernels
def test_an_attention_alone_is_its_nodes_or_the_kernel(fp32) -> None:
    import onnxruntime as ort

    folder, rng = fp32.runtime.folder, np.random.default_rng(0)
    block, side = folder.config.blocks[0], folder.config.blocks[0].window
    tokens = [(2, side * side, size) for size in (block.qk, block.qk, block.v)]
    shapes = [*tokens, *((2 * side - 1, block.qk // block.heads),) * 2]
    (note, *_), content = folder.graphs["encoder"]["kernels"], folder.graph_file("encoder").read_bytes()
    given = {name: rng.standard_normal(size, np.float32) for name, size in zip(note["inputs"], shapes, strict=True)}
    found = []
    for kernel in (True, False):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.register_custom_ops_library(str(library_file()))
        graph = attention_alone(content, note, shapes, shapes[2], kernel=kernel)
        found += ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(None, given)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_graphs_may_keep_their_weights_beside_them(fp32, tmp_path: Path) -> None:
    """As the largest do."""
    copied = Path(shutil.copytree(fp32.path, tmp_path / "copied"))
    file = copied / "encoder.onnx"
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="encoder.onnx.data", size_threshold=1024)
    values = json.loads((copied / MANIFEST).read_text())
    values["graphs"]["encoder"]["sha256"] = graph_sha256(file)
    (copied / MANIFEST).write_text(json.dumps(values))
    runtime = OnnxRuntime(copied, threads=1)
    assert runtime.with_kernels == ("encoder",)
    np.testing.assert_array_equal(runtime.encode(pixels(fp32)), OnnxRuntime(fp32.path, threads=1).encode(pixels(fp32)))


def test_one_may_do_without_them(fp32, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "off")
    runtime = OnnxRuntime(fp32.path, threads=1)
    assert runtime.with_kernels == ()
    np.testing.assert_array_equal(
        runtime.encode(pixels(fp32)), OnnxRuntime(fp32.path, threads=1, kernels=False).encode(pixels(fp32))
    )
    computes = next(row.computes for row in listing.listed() if row.name == "onnxruntime")
    assert "without sam-edge's own kernels" in computes


@needs_kernels
def test_a_listing_says_that_they_are_here() -> None:
    computes = next(row.computes for row in listing.listed() if row.name == "onnxruntime")
    assert "attention by sam-edge's own kernels (" in computes


@pytest.mark.parametrize("content", [None, b"text"], ids=["no file", "no library"])
def test_what_is_no_library_is_refused(fp32, content: bytes | None, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "kernels.so"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(SWITCH, str(file))
    with pytest.raises(BackendUnavailableError, match="must be off or a file of compiled kernels") as refused:
        OnnxRuntime(fp32.path)
    assert "\n" not in str(refused.value)


def test_a_library_that_is_absent_or_broken_is_as_if_there_were_none(
    fp32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sam_edge.kernels import library

    monkeypatch.setattr(library, "LIBRARY", tmp_path / "libsam_edge.so")
    monkeypatch.delenv(SWITCH, raising=False)
    assert OnnxRuntime(fp32.path).with_kernels == ()
