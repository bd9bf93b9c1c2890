"""An exported folder's graphs in 16 bits: proven on pictures, and refused where they disagree."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from sam_edge.errors import ExportError
from sam_edge.export import typed_graphs
from sam_edge.export.parity import compare
from sam_edge.export.ranges import Kept
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.export.typed_graphs import asked, read, save, write_typed
from sam_edge.export.walk import WalkRuntime, value_types
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.scenes.synthetic import SyntheticScenes
from sam_edge.segment.config import DecoderConfig, ModelConfig, uniform_blocks

HALF = TensorProto.FLOAT16
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco128"


def test_halves_are_written_beside_the_graphs_and_agree_with_them(fp32_small, photo, tmp_path: Path) -> None:
    folder = ExportedFolder.read(fp32_small.path)
    typed = write_typed(folder, tmp_path, "fp16", [photo], [photo[::-1].copy()])
    assert typed.parity is not None
    assert min(typed.parity.mask_iou, typed.parity.split_mask_iou or 0) >= 0.98
    assert {path.name for path in tmp_path.iterdir()} == {f"{graph}.fp16.onnx" for graph in folder.graphs}
    for graph, file in typed.files.items():
        model = onnx.load(file)
        onnx.checker.check_model(model)
        kept = {node.node for node in typed.float32[graph]}
        types = value_types(model)
        products = [node for node in model.graph.node if node.op_type == "Softmax" and node.name not in kept]
        assert all(types[node.output[0]] == HALF for node in products)
        assert all(node.reason for node in typed.float32[graph])


def test_masks_of_earlier_rounds_are_read_too(fp32_small, photo) -> None:
    folder = ExportedFolder.read(fp32_small.path)
    readings = read(folder, {graph: onnx.load(folder.graph_file(graph)) for graph in folder.graphs}, [photo], HALF)
    assert readings["decoder"].peaks["mask_input"] > 0
    assert readings["decoder"].peaks["has_mask_input"] == 1


def test_what_disagrees_is_refused_in_one_line(fp32_small, photo, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(typed_graphs.SMALLEST_IOU, "fp16", 1.01)
    monkeypatch.setattr(typed_graphs, "TOLERANCES", (16.0,))
    with pytest.raises(
        ExportError, match=r"in fp16 masks agree .* below 1\.01, with \d+ nodes left .*--precision"
    ) as told:
        write_typed(ExportedFolder.read(fp32_small.path), tmp_path, "fp16", [photo])
    assert "\n" not in str(told.value)


def test_where_masks_disagree_more_nodes_keep_float32(fp32_small, photo, tmp_path: Path, monkeypatch) -> None:
    heard: list[int] = []
    written = typed_graphs._write

    def write(sources, kept, *rest):
        heard.append(sum(map(len, kept.values())))
        return written(sources, kept, *rest)

    monkeypatch.setattr(typed_graphs, "_write", write)
    monkeypatch.setitem(typed_graphs.SMALLEST_IOU, "fp16", 1.01)
    with pytest.raises(ExportError):
        write_typed(ExportedFolder.read(fp32_small.path), tmp_path, "fp16", [photo])
    assert len(heard) == len(typed_graphs.TOLERANCES)
    assert heard == sorted(set(heard))


def test_large_graphs_keep_their_weights_in_a_file_beside_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(typed_graphs, "LARGEST_FILE", 1000)
    weights = onnx.numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    value = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])
    other = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    for _ in range(2):
        graph = onnx.helper.make_graph([node], "one", [value], [other], [weights])
        save(onnx.helper.make_model(graph), tmp_path / "one.onnx")
        assert (tmp_path / "one.onnx.data").stat().st_size == 4000
        stored = onnx.load(tmp_path / "one.onnx").graph.initializer[0]
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored), np.arange(1000))


def outliers() -> EdgeSam:
    """Random weights of which a few channels are a hundred times as large, those that trained ViTs carry theirs in."""
    config = ModelConfig(
        arch="vit",
        image_size=128,
        blocks=uniform_blocks(3, 48, 2, (1,), window=3),
        decoder=DecoderConfig(dim=64, depth=2, mlp=64),
    )
    model = EdgeSam(config)
    initialise(model, 0)
    generator = torch.Generator().manual_seed(0)
    few = torch.randperm(48, generator=generator)[:3]
    with torch.no_grad():
        for block in model.image_encoder.blocks:
            for layer in (block.mlp.lin2, block.attn.proj):
                layer.weight[few] *= 100
                layer.bias[few] += 100 * torch.randn(3, generator=generator)
        model.image_encoder.neck[0].weight[few] *= 100
    return model


@pytest.mark.slow
def test_outliers_ruin_a_plain_cast_and_not_typed_graphs(tmp_path: Path) -> None:
    scenes = SyntheticScenes(4)
    images = [scenes[index].image for index in range(4)]
    export_onnx(outliers(), tmp_path / "onnx", images[:2], OnnxOptions("fp32", "tensorrt"))
    folder = ExportedFolder.read(tmp_path / "onnx")
    typed = write_typed(folder, tmp_path, "fp16", images[:2], images[2:])
    assert typed.parity is not None
    assert min(typed.parity.mask_iou, typed.parity.split_mask_iou or 0) >= 0.98
    reasons = {node.operator: node.reason for node in typed.float32["encoder"]}
    assert "halves end at 65504" in reasons["Pow"]
    sources = {graph: onnx.load(folder.graph_file(graph)) for graph in folder.graphs}
    nothing: dict[str, dict[str, Kept]] = {graph: {} for graph in sources}
    plain, _ = typed_graphs._write(sources, nothing, HALF, tmp_path, "plain")
    own = {graph: folder.graph_file(graph) for graph in folder.graphs}
    with np.errstate(all="ignore"):
        wanted, got = (asked(WalkRuntime(folder, files), images[2:]) for files in (own, plain))
    assert compare(wanted, got).mask_iou < 0.9


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs photos")
@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.99), ("fp8", 0.95)])
def test_nano_on_photos(precision: str, least: float, tmp_path: Path) -> None:
    from sam_edge.commands.common import sample_others, sample_pictures
    from sam_edge.models.registry import load_model

    images = sample_pictures(str(PHOTOS), 1, 0)
    export_onnx(load_model("nano"), tmp_path / "onnx", images, OnnxOptions("fp32", "tensorrt"))
    folder = ExportedFolder.read(tmp_path / "onnx")
    typed = write_typed(folder, tmp_path, precision, images, sample_others(str(PHOTOS), 2, 0, 1))
    assert typed.parity is not None
    assert min(typed.parity.mask_iou, typed.parity.split_mask_iou or 0) >= least
