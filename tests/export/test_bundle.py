"""A bundle builds, checks and runs with its own program alone, on doubles of TensorRT and pycuda."""

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from PIL import Image

from sam_edge.errors import ExportError
from sam_edge.export.bundle import MANIFEST, SCRIPT, write_bundle
from sam_edge.export.to_tensorrt import TrtOptions
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.segment.predictor import SamPredictor
from tests.export import device_double

GRAPHS = ("encoder", "decoder", "prepare", "predict", "upscale")


@pytest.fixture(scope="module")
def bundle(fp32_small, photo, tmp_path_factory) -> Path:
    """Of a small model in halves, with engines built by the double."""
    out = tmp_path_factory.mktemp("bundles") / "small"
    exported = ExportedFolder.read(fp32_small.path)
    write_bundle(exported, out, TrtOptions("standard", max_sets=16, max_points=4), [photo])
    assert run(out, "build") == 0
    return out


@pytest.fixture
def built(bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def script(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("on_device", folder / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, *args: object, capability=(8, 7), **library) -> int:
    """The program's exit status on the doubles."""
    module, cuda = script(folder), device_double.driver(capability)
    module.library = lambda: device_double.library(cuda, **library)
    module.driver = lambda: cuda
    return module.main([str(arg) for arg in args])


def test_what_a_device_gets(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    files = {f"{graph}.fp16.onnx" for graph in GRAPHS} | {"parity.npz", SCRIPT}
    assert manifest["sha256"].keys() == files
    assert manifest["graphs"]["decoder"]["shapes"]["point_labels"]["max"] == [1, 16, 4]
    assert (manifest["precision"], manifest["smallest_iou"]) == ("fp16", 0.98)
    for graph in GRAPHS:
        assert all(node.op_type != "Gelu" for node in onnx.load(bundle / f"{graph}.fp16.onnx").graph.node)


def test_the_program_imports_nothing_of_sam_edge(bundle: Path) -> None:
    code = "import sys; sys.path.insert(0, '.'); import on_device; print('sam_edge' in sys.modules)"
    told = subprocess.run([sys.executable, "-I", "-c", code], cwd=bundle, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
    # JetPack 6 has Python 3.10
    ast.parse((bundle / SCRIPT).read_text(), feature_version=(3, 10))


def test_engines_that_agree_are_marked_as_run(built: Path, capsys) -> None:
    assert {e["state"] for e in json.loads((built / "engines.json").read_text())["engines"].values()} == {
        "built, not run"
    }
    assert run(built, "check") == 0
    shown = capsys.readouterr().out
    assert shown.count("mean mask IoU") == 4
    assert {e["state"] for e in json.loads((built / "engines.json").read_text())["engines"].values()} == {"run"}


def test_engines_that_disagree_are_refused_and_stay_unrun(built: Path, capsys) -> None:
    def spoil(name: str, value: np.ndarray) -> np.ndarray:
        return -value if name == "embeddings" else value

    assert run(built, "check", spoil=spoil) == 1
    assert "below 0.98: do not use these engines" in capsys.readouterr().err
    assert "built, not run" in (built / "engines.json").read_text()


def test_not_a_number_is_no_agreement(built: Path, capsys) -> None:
    assert run(built, "check", spoil=lambda name, value: value * np.nan if name == "logits" else value) == 1
    assert "masks agree to 0.0000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "10.13.3"}, "built for version 10.3.0, and 10.13.3 is here: build again"),
        ({"capability": (11, 0)}, "built for gpu sm87, and sm110 is here: build again"),
    ],
)
def test_engines_of_another_version_or_gpu_are_refused(built: Path, change, told: str, capsys) -> None:
    assert run(built, "check", **change) == 1
    assert told in capsys.readouterr().err


def test_changed_files_are_refused(built: Path, capsys) -> None:
    engine = built / "decoder.engine"
    engine.write_bytes(engine.read_bytes() + b" ")
    assert run(built, "check") == 1
    assert "decoder.engine was changed since it was built" in capsys.readouterr().err
    (built / "encoder.fp16.onnx").unlink()
    assert run(built, "build") == 1
    assert "encoder.fp16.onnx is missing or was changed: copy the folder again" in capsys.readouterr().err


def test_what_the_parser_refuses_is_told_in_one_line(built: Path, fp32_small, capsys) -> None:
    manifest = json.loads((built / MANIFEST).read_text())
    # as exported, with Gelu
    shutil.copyfile(ExportedFolder.read(fp32_small.path).graph_file("encoder"), built / "encoder.fp16.onnx")
    manifest["sha256"]["encoder.fp16.onnx"] = (
        script(built).hashlib.sha256((built / "encoder.fp16.onnx").read_bytes()).hexdigest()
    )
    (built / MANIFEST).write_text(json.dumps(manifest))
    assert run(built, "build") == 1
    shown = capsys.readouterr().err
    assert "encoder.fp16.onnx was not built: No importer registered for op: Gelu" in shown
    assert shown.count("\n") == 1


def test_timings_of_earlier_builds_are_given_to_the_next(built: Path) -> None:
    timings = built / "timings-10.3.0-sm87.cache"
    assert timings.read_bytes() == b"t" * len(GRAPHS)
    assert run(built, "build") == 0
    assert timings.read_bytes() == b"t" * 2 * len(GRAPHS)
    assert run(built, "build", version="10.13.3") == 0
    assert timings.read_bytes() == b"t" * 2 * len(GRAPHS)
    assert "built" in (built / "build.log").read_text()


def test_a_picture_is_segmented_as_sam_edge_does(bundle: Path, fp32_small, photo, tmp_path: Path) -> None:
    picture = device_double.written_ppm(tmp_path / "photo.ppm", photo)
    height, width = photo.shape[:2]
    box = [0.2 * width, 0.1 * height, 0.8 * width, 0.9 * height]
    out = tmp_path / "mask.pgm"
    assert run(bundle, "segment", picture, "--box", ",".join(map(str, box)), "--out", out) == 0
    predictor = SamPredictor(fp32_small.runtime)
    predictor.set_image(photo)
    wanted = predictor.predict(box=np.array(box), multimask_output=False)[0][0]
    got = np.array(Image.open(out)) > 0
    assert got.shape == wanted.shape
    # in halves there, and random weights' logits are near zero
    assert (got == wanted).mean() > 0.98


def test_resizing_is_pillows(bundle: Path, photo) -> None:
    for height, width in ((37, 64), (200, 31)):
        wanted = np.array(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(script(bundle).resized(photo, height, width) - wanted).max() <= 1


def test_wrong_use_is_one_line(bundle: Path, tmp_path: Path, capsys) -> None:
    assert run(bundle, "segment", tmp_path / "none.ppm", "--box", "1,2,3,4") == 1
    (tmp_path / "one.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
    assert run(bundle, "segment", tmp_path / "one.ppm", "--box", "1,2,3") == 1
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert "--box takes X0,Y0,X1,Y1, got 1,2,3" in shown[1]


def test_a_bundle_needs_graphs_that_a_precision_fits(fp32_small, photo, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--precision int8 needs a quantized model"):
        write_bundle(ExportedFolder.read(fp32_small.path), tmp_path / "b", TrtOptions(precision="int8"), [photo])
