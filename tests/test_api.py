"""The public surface: what is named there, what importing it costs, and that its verbs do what the commands do."""

import inspect
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

import sam_edge

NAMES = {
    "EverythingGenerator": ["model", "points_per_side"],
    "Pretrained": ["folder"],
    "SamEdgeError": [],
    "SamPredictor": ["sam_model"],
    "compress": ["model", "images", "out", "ratio", "student", "epochs", "batch_size", "learning_rate", "seed"],
    "evaluate": ["model", "data", "prompt", "multimask", "clicks", "split", "limit", "seed", "runtime", "device"],
    "export": ["model", "out", "precision", "layout", "images", "seed"],
    "load": ["model", "runtime", "device"],
    "quantize": ["model", "images", "out", "weights", "activations", "calibration_images", "max_drop", "gate_data"],
}
"""Every public name, and how its arguments begin: changing one is changing other people's programs."""


def test_the_surface_is_what_it_was():
    assert set(sam_edge.__all__) == set(NAMES)
    assert dir(sam_edge) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", sorted(NAMES.keys() - {"SamEdgeError"}))
def test_the_arguments_are_what_they_were(name):
    if name == "Pretrained":
        pytest.importorskip("huggingface_hub")
    value = getattr(sam_edge, name)
    assert list(inspect.signature(value).parameters)[: len(NAMES[name])] == NAMES[name]
    documented = value if inspect.isclass(value) or name == "load" else getattr(import_module("sam_edge.api"), name)
    assert inspect.getdoc(documented)


def test_importing_it_imports_nothing_else():
    script = "import sys; before = set(sys.modules); import sam_edge; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names == {"sam_edge"}


@pytest.mark.parametrize("first", ["sam_edge.evaluate.miou", "sam_edge.api"])
def test_a_verb_is_its_package_whichever_is_asked_for_first(first):
    script = f"""
import sam_edge, importlib
importlib.import_module({first!r})
from sam_edge import evaluate
import sam_edge.evaluate.miou
assert callable(sam_edge.evaluate) and evaluate is sam_edge.evaluate is __import__("sys").modules["sam_edge.evaluate"]
assert sam_edge.evaluate.miou.evaluate_miou
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segment_anything'"):
        _ = sam_edge.segment_anything


def test_a_predictor_and_a_generator_take_what_load_opens(tiny_slim, tmp_path, photo):
    from sam_edge.models.checkpoint import save_checkpoint

    model = sam_edge.load(save_checkpoint(tiny_slim, tmp_path / "m"), runtime="torch", device="cpu")
    predictor = sam_edge.SamPredictor(model)
    predictor.set_image(photo)
    masks, iou, _ = predictor.predict(box=np.array([5, 5, 60, 40]), multimask_output=False)
    assert masks.shape == (1, *photo.shape[:2])
    assert iou.shape == (1,)
    found = sam_edge.EverythingGenerator(model, points_per_side=2).generate(photo)
    assert all("segmentation" in record for record in found)
    with pytest.raises(sam_edge.SamEdgeError, match="neither a known model"):
        sam_edge.load("no-such-model")


def test_a_model_goes_through_all_verbs(tiny_slim, tmp_path):
    from sam_edge.models.checkpoint import save_checkpoint
    from sam_edge.quantize.ptq import QuantizeOptions

    seen = []
    parent = save_checkpoint(tiny_slim, tmp_path / "m")
    slim = sam_edge.compress(
        parent,
        "synthetic:6:1",
        tmp_path / "slim",
        ratio=0.3,
        epochs=1,
        seed=3,
        on_progress=lambda *step: seen.append(step),
    )
    assert slim["parameters"] < slim["parent"]["parameters"]
    assert seen
    quick = QuantizeOptions(weights=6, metric="minmax")
    integers = sam_edge.quantize(
        tmp_path / "slim", "synthetic:4:1", tmp_path / "q", calibration_images=1, options=quick
    )
    assert integers["layers"] > 20
    score = sam_edge.evaluate(tmp_path / "q", "synthetic:9:2", prompt="point", limit=1, runtime="torch", split="all")
    assert (score["prompt"], score["images"]) == ("point", 1)
    lineage = sam_edge.Pretrained(tmp_path / "q").lineage
    assert [step["step"] for step in lineage] == ["compress", "quantize"]
    assert lineage[0]["settings"]["ratio"] == 0.3
    assert lineage[0]["seed"] == 3


@pytest.mark.slow
def test_a_student_is_distilled(tiny_slim, tmp_path):
    from sam_edge.models.checkpoint import save_checkpoint

    teacher = save_checkpoint(tiny_slim, tmp_path / "m")
    made = sam_edge.compress(teacher, "synthetic:6:1", tmp_path / "s", student=str(teacher), epochs=1, batch_size=2)
    assert made["steps"] > 0
    assert sam_edge.Pretrained(tmp_path / "s").lineage[-1]["settings"]["method"] == "tinysam"


@pytest.mark.slow
def test_an_export_agrees(tiny_slim, tmp_path):
    from sam_edge.models.checkpoint import save_checkpoint

    result = sam_edge.export(save_checkpoint(tiny_slim, tmp_path / "m"), tmp_path / "onnx")
    assert result["parity"]["mask_iou"] > 0.999
    assert sam_edge.load(tmp_path / "onnx", runtime="onnxruntime").name == "onnxruntime"
