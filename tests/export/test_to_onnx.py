"""sam_edge.export.to_onnx: graphs that say what torch says, and integers that are integers."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from sam_edge.errors import ExportError
from sam_edge.export import to_onnx
from sam_edge.export.graphs import encoder_graph, to_half
from sam_edge.export.to_onnx import OnnxOptions, export_onnx
from sam_edge.quantize.ptq import QuantizeOptions, quantize_model
from sam_edge.runtimes.folder import ExportedFolder, is_exported_folder
from sam_edge.runtimes.graphs import decoder_inputs
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.prompts import ABSENT, Prompts

SLOW = pytest.mark.slow
FLOAT = ["fp32", "timm_fp32", pytest.param("tiny_vit_fp32", marks=SLOW)]
CPU_INTEGER = [
    "int8",
    "int8_decoder",
    pytest.param("int8_whole", marks=SLOW),
    "timm_int8",
    pytest.param("tiny_vit_int8", marks=SLOW),
]
INTEGER = [*CPU_INTEGER, pytest.param("int8_tensorrt", marks=SLOW)]
ALL = [*FLOAT, *INTEGER, pytest.param("fp16", marks=SLOW)]


def some_prompts(batch: int, sets: int, points: int, mask_size: int = 0) -> Prompts:
    """Random points, with a mask prompt where it has a size."""
    generator = torch.Generator().manual_seed(sets)
    return Prompts(
        (64 * torch.rand(batch, sets, points, 2, generator=generator)).numpy(),
        torch.randint(-1, 4, (batch, sets, points), generator=generator).numpy(),
        torch.randn(batch, sets, 1, mask_size, mask_size, generator=generator).numpy() if mask_size else None,
    )


def some_pixels(batch: int, seed: int) -> np.ndarray:
    """Noise in place of pictures."""
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).numpy()


def assert_agree(name: str, wanted: np.ndarray, got: np.ndarray, float_tolerance: float) -> None:
    """Equal to rounding in float; for halves and integers to a few steps of their grids."""
    assert got.shape == wanted.shape
    if name.endswith("fp32"):
        np.testing.assert_allclose(got, wanted, rtol=float_tolerance, atol=float_tolerance)
    else:
        assert np.abs(got - wanted).max() < 0.06 * np.abs(wanted).max()
        assert np.abs(got - wanted).mean() < 0.006 * np.abs(wanted).max()


# --- What the graphs compute


def test_an_encoder_in_halves_is_torch_s_in_float(small_config, make_sam, tmp_path):
    pixels = some_pixels(2, seed=2)
    with torch.inference_mode():
        wanted = make_sam(small_config).image_encoder(torch.from_numpy(pixels)).numpy()
    described = to_onnx._write(encoder_graph(to_half(make_sam(small_config)), torch.float16), tmp_path)
    (found,) = ort.InferenceSession(tmp_path / described["file"]).run(None, {"pixels": pixels})
    assert_agree("fp16", wanted, found, 0.0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch", [1, 3])
def test_embeddings_are_torch_s_at_other_batch_sizes(request, name, batch):
    exported = request.getfixturevalue(name)
    pixels = some_pixels(batch, seed=batch)
    wanted, got = (one.host(one.encode(pixels)) for one in (exported.torch, exported.runtime))
    assert_agree(name, wanted, got, 1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("batch", "sets", "points"), [(1, 1, 1), (1, 5, 2), (3, 2, 7)])
def test_masks_are_torch_s_at_other_sizes(request, name, batch, sets, points):
    exported = request.getfixturevalue(name)
    wanted, got = exported.decode(some_prompts(batch, sets, points))
    for one, other in zip(wanted, got, strict=True):
        assert_agree(name, one, other, 1e-3)


@pytest.mark.parametrize("name", INTEGER)
def test_an_integer_graph_is_torch_s_simulation_before_it_is_fused(request, name):
    exported = request.getfixturevalue(name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    encoder, decoder = (
        ort.InferenceSession(exported.path / f"{graph}.onnx", options, providers=["CPUExecutionProvider"])
        for graph in ("encoder", "decoder")
    )
    pixels, prompts = some_pixels(2, seed=3), some_prompts(2, 3, 2)
    encoded = exported.torch.encode(pixels)
    embeddings = exported.torch.host(encoded)
    # a value on the edge of two steps may still fall to either side, and takes its neighbours along
    off = np.abs(encoder.run(None, {"pixels": pixels})[0] - embeddings)
    assert np.quantile(off, 0.95) < 1e-5
    given = {"embeddings": embeddings, **decoder_inputs(exported.model.config, prompts)}
    for wanted, got in zip(exported.torch.decode(encoded, prompts), decoder.run(None, given), strict=True):
        assert np.quantile(np.abs(got - wanted), 0.99) < 1e-3


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_mask_prompts_are_torch_s(request, name):
    exported = request.getfixturevalue(name)
    wanted, got = exported.decode(some_prompts(2, 2, 1, exported.model.config.mask_size))
    for one, other in zip(wanted, got, strict=True):
        assert_agree(name, one, other, 1e-3)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_padded_sets_give_what_each_gives_alone(request, name):
    exported = request.getfixturevalue(name)
    full = some_prompts(1, 3, 4)
    labels, coords = full.labels.copy(), full.coords.copy()
    for index, kept in enumerate((1, 4, 2)):
        labels[:, index, kept:] = ABSENT
        # whatever lies at an absent point must not matter
        coords[:, index, kept:] = 1e4
    _, (logits, iou) = exported.decode(Prompts(coords, labels))
    for index, kept in enumerate((1, 4, 2)):
        at = slice(index, index + 1)
        _, alone = exported.decode(Prompts(full.coords[:, at, :kept], full.labels[:, at, :kept]))
        np.testing.assert_allclose(logits[:, at], alone[0], rtol=1e-3, atol=2e-3 * np.abs(logits).max())
        np.testing.assert_allclose(iou[:, at], alone[1], rtol=1e-3, atol=2e-3)
    _, whole = exported.decode(full)
    assert np.abs(whole[0][:, 0] - logits[:, 0]).max() > 0.01 * np.abs(logits).max()


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_a_mask_counts_only_where_it_is_said_to_be_given(request, name):
    exported = request.getfixturevalue(name)
    session = ort.InferenceSession(exported.path / "decoder.onnx", providers=["CPUExecutionProvider"])
    config = exported.model.config
    prompts = some_prompts(1, 2, 2, config.mask_size)
    embeddings = np.random.default_rng(1).normal(size=(1, 32, config.grid, config.grid)).astype(np.float32)
    given = {"embeddings": embeddings, **decoder_inputs(config, prompts)}
    with_masks = session.run(None, given)[0]
    ignored = session.run(None, {**given, "has_mask_input": np.zeros((1, 2), np.float32)})[0]
    without = decoder_inputs(config, Prompts(prompts.coords, prompts.labels))
    absent = session.run(None, {"embeddings": embeddings, **without})[0]
    mixed = session.run(None, {**given, "has_mask_input": np.array([[0, 1]], np.float32)})[0]
    np.testing.assert_array_equal(ignored, absent)
    tolerance = 2e-3 * np.abs(absent).max()
    np.testing.assert_allclose(mixed[:, 0], absent[:, 0], atol=tolerance)
    np.testing.assert_allclose(mixed[:, 1], with_masks[:, 1], atol=tolerance)
    assert np.abs(with_masks - absent).max() > 0.01 * np.abs(absent).max()


def test_a_predictor_on_onnx_runtime_answers_as_on_torch(fp32, photo):
    answers = []
    for runtime in (fp32.torch, fp32.runtime):
        predictor = SamPredictor(runtime)
        predictor.set_image(photo)
        answers.append(predictor.predict(box=np.array([10, 5, 60, 40]), return_logits=True))
    for wanted, got in zip(*answers, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


# --- The decoder in three graphs


def split_of(exported, prompts: Prompts, sets: np.ndarray, masks: np.ndarray) -> list[np.ndarray]:
    """IoU and wanted logits of prompts about one image, by ONNX Runtime."""
    prediction = exported.runtime.predict(exported.runtime.prepare(exported.embeddings()), prompts)
    return [exported.runtime.upscale(prediction, sets, masks), prediction.iou]


@pytest.mark.parametrize("sets", [1, 6])
@pytest.mark.parametrize(
    "name", ["fp32", "int8", pytest.param("fp16", marks=SLOW), pytest.param("int8_tensorrt", marks=SLOW)]
)
def test_the_split_graphs_are_torch_s_decoder(request, name, sets):
    exported = request.getfixturevalue(name)
    prompts = some_prompts(1, sets, 3)
    prompts.labels[:, 0, 1:] = ABSENT
    (wanted, wanted_iou), _ = exported.decode(prompts)
    # more than one call takes, out of order, one of them twice
    chosen = np.arange(sets)[::-1].repeat(2)
    masks = np.arange(2 * sets) % 4
    logits, iou = split_of(exported, prompts, chosen, masks)
    assert_agree(name, wanted_iou[0], iou, 1e-4)
    assert_agree(name, wanted[0, chosen, masks], logits, 1e-4)


def test_split_graphs_without_a_wanted_mask_and_with_mask_prompts(fp32):
    side = fp32.model.config.mask_size
    none = np.zeros(0, np.int64)
    assert split_of(fp32, some_prompts(1, 2, 1), none, none)[0].shape == (0, side, side)
    prompts = some_prompts(1, 2, 1, side)
    (wanted, wanted_iou), _ = fp32.decode(prompts)
    logits, iou = split_of(fp32, prompts, np.array([1, 0]), np.array([2, 3]))
    assert_agree("fp32", wanted_iou[0], iou, 1e-4)
    assert_agree("fp32", wanted[0, [1, 0], [2, 3]], logits, 1e-4)


# --- What is refused


def test_a_precision_that_the_checkpoint_does_not_have_is_refused(small_config, make_sam, photo, tmp_path):
    model = make_sam(small_config)
    with pytest.raises(ExportError, match="int8 needs a quantized checkpoint"):
        export_onnx(model, tmp_path / "out", [photo], OnnxOptions("int8"))
    with pytest.raises(ExportError, match="at least one picture"):
        export_onnx(model, tmp_path / "out", [], OnnxOptions("fp32"))
    quantize_model(model, [photo], QuantizeOptions(prompts_per_image=1))
    for precision in ("fp32", "fp16"):
        with pytest.raises(ExportError, match=f"with --precision int8, got {precision}"):
            export_onnx(model, tmp_path / "out", [photo], OnnxOptions(precision))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def old_graphs(monkeypatch, fp32):
    """An exporter that writes the graphs of `fp32`, whatever the model."""

    def write(spec, folder: Path, *_):
        entry = ExportedFolder.read(fp32.path).graphs[spec.name]
        shutil.copy(fp32.path / entry["file"], folder)
        return entry

    monkeypatch.setattr(to_onnx, "_write", write)


def test_graphs_of_other_weights_are_refused_and_nothing_is_left(old_graphs, tiny_config, make_sam, photo, tmp_path):
    with pytest.raises(ExportError, match="the fp32 export disagrees with torch: mean mask IoU 0"):
        export_onnx(make_sam(tiny_config, seed=1), tmp_path / "out", [photo], OnnxOptions())
    assert list(tmp_path.iterdir()) == []
    # the same exporter with the right weights passes
    export_onnx(make_sam(tiny_config, seed=0), tmp_path / "out", [photo], OnnxOptions())
    assert is_exported_folder(tmp_path / "out")


def test_a_miss_leaves_an_earlier_export_as_it_was(old_graphs, tiny_config, make_sam, photo, tmp_path, monkeypatch):
    out, _ = export_onnx(make_sam(tiny_config), tmp_path / "out", [photo], OnnxOptions())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setitem(to_onnx.SMALLEST_IOU, "fp32", 1.1)
    with pytest.raises(ExportError, match=r"is below 1\.1; nothing was written"):
        export_onnx(make_sam(tiny_config), out, [photo], OnnxOptions())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
