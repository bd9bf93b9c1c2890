"""`sam-edge demo`: the sample photo, segmented in three ways by the graphs that ship."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from sam_edge.commands.common import OnProgress
from sam_edge.commands.device.segment import EverythingOptions, ImagePrompts, Segmenter, coco
from sam_edge.data.rle import decode_mask
from sam_edge.errors import BackendUnavailableError
from sam_edge.files import atomic_folder, check_target
from sam_edge.halves import EXTRAS
from sam_edge.runtimes.folder import shipped_graphs
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.known import shipped_folder
from sam_edge.segment.runtime import Runtime

MODEL = "nano"
ASKED = {
    "point": ImagePrompts(points=((280.0, 115.0, 1),)),
    "box": ImagePrompts(box=(165.0, 15.0, 420.0, 290.0)),
    "everything": ImagePrompts(),
}
"""What the photo, an espresso of 600 x 400 pixels, is asked."""
POINTS_PER_SIDE = 16
"""A coarse grid: a quarter of the points that `segment --everything` asks, for the sake of slow devices."""
NEXT = (
    "sam-edge segment nano YOUR.jpg --box X0,Y0,X1,Y1 --out masks    your own photo",
    "sam-edge export-web nano --out site && sam-edge serve site      click in the browser",
    "sam-edge doctor                                                 what else this machine could run",
    "pip install 'sam-edge[workshop]' && sam-edge compress --help    make a SAM of your own small",
)
"""Commands that lead on."""


def demo(out: Path, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Write `photo.jpg`, an overlay for each of `ASKED`, and `masks.json` with what everything mode found.

    Raises:
        BackendUnavailableError: neither ONNX Runtime nor OpenVINO is here.
        SamEdgeError: `out` cannot be written.
    """
    check_target(out)
    runtime = _opened()
    photo = shipped_folder("sample") / "photo.jpg"
    steps = []
    with atomic_folder(out) as work:
        (work / photo.name).write_bytes(photo.read_bytes())
        for number, (asked, prompts) in enumerate(ASKED.items()):
            say = _of_step(number, asked, on_progress)
            say(0, 1)
            started = perf_counter()
            segmenter = Segmenter(runtime, prompts, EverythingOptions("hierarchical", POINTS_PER_SIDE))
            picture = segmenter.read(photo)
            records = segmenter.records(picture, say)
            seconds = perf_counter() - started
            masks = [decode_mask(record["segmentation"]) for record in records]
            Image.fromarray(segmenter.drawn(picture, masks, seed=0)).save(work / f"{asked}.png")
            overlay = str(out / f"{asked}.png")
            steps.append({"asked": asked, "masks": len(records), "seconds": seconds, "overlay": overlay})
        height, width = picture.size
        found = {"model": MODEL, "image": photo.name, "width": width, "height": height, "masks": records}
        (work / "masks.json").write_text(json.dumps(coco(found)), encoding="utf-8")
    return {"out": str(out), "model": MODEL, "runtime": runtime.name, "steps": steps}


def _opened() -> Runtime:
    """The graphs that ship, in the first runtime that is here; torch, which the workshop has too, is not needed."""
    graphs = shipped_graphs(MODEL)
    assert graphs is not None
    for name in ("onnxruntime", "openvino"):
        if find_spec(name) is not None:
            return open_runtime(graphs, name, "cpu")
    raise BackendUnavailableError(f"nothing that runs graphs is here: pip install 'sam-edge[{EXTRAS['onnxruntime']}]'.")


def _of_step(number: int, asked: str, on_progress: OnProgress | None) -> Callable[[int, int], None]:
    def say(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(round(100 * (number + done / max(total, 1))), 100 * len(ASKED), asked)

    return say
