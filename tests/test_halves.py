"""A half, or a runtime, that is not installed is one line that installs it."""

import subprocess
import sys

import pytest

from sam_edge.errors import BackendUnavailableError
from sam_edge.halves import EXTRAS, missing, workshop

COMMANDS = {
    "compress nano --images synthetic:2 --out o": "workshop",
    "quantize nano --images synthetic:2 --out o": "workshop",
    "export-onnx nano --out o": "workshop",
    "train --data synthetic:2 --out o": "workshop",
    "segment vit_b nothing.jpg --box 1,1,2,2 --out o": "nothing.jpg",
    "eval nano --data synthetic:4": "workshop",
    "models": "",
    "runtimes": "",
}


@pytest.mark.parametrize("module", EXTRAS)
def test_what_an_extra_brings_is_named(module: str) -> None:
    error = ModuleNotFoundError(f"No module named '{module}.part'", name=f"{module}.part")
    assert f"pip install 'sam-edge[{EXTRAS[module]}]'" in str(missing(error))


def test_what_no_extra_brings_stays_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError):
        missing(ModuleNotFoundError("No module named 'sam_edge.nothing'", name="sam_edge.nothing"))


def test_a_door_that_is_closed_says_what_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sam_edge.halves.importlib.import_module", _without_torch)
    with pytest.raises(BackendUnavailableError, match=r"synthetic:4 needs torch: pip install 'sam-edge\[workshop\]'"):
        workshop("sam_edge.scenes.synthetic", "synthetic:4")


def _without_torch(name: str) -> None:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_its_half_is_one_line(command: str, tmp_path) -> None:
    script = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "cv2", "segment_anything", "onnx", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else found(name, *more)
from sam_edge.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, *command.split()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    wanted = COMMANDS[command]
    assert done.returncode == (1 if wanted else 0), done.stderr
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    if wanted:
        assert done.stderr.strip().splitlines()[-1].startswith("sam-edge: ")
