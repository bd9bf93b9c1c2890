"""Memory over a thousand pictures: what grows with their number would end a long run."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from tests.campaign.forked import Running
from tests.campaign.tally import Tally

PICTURES, WARM = 1000, 100
"""How many, and after how many what is allocated once has been."""
GROWTH = 0.05
"""Largest share of its memory that a process may gain between."""
MODES = ("box", "everything")


def leak(work: Path, tally: Tally, *, share: float = 1.0) -> None:
    """Each mode on torch and on ONNX Runtime, in processes of their own."""
    count = max(round(PICTURES * share), 20)
    for kind in [f"leak: {mode}, {model}" for mode in MODES for model in ("slim", "exported")]:
        for number in tally.wanted(kind, 1):
            mode, model = kind.removeprefix("leak: ").split(", ")
            file = work / "memory"
            ending = Running(partial(_segment, work / "base" / model, mode, count, file), work).ending(280)
            if ending.code:
                tally.add(kind, number, ending.trouble or ending.err[-200:])
                continue
            warm, last = map(int, file.read_text().split())
            grown = last / warm - 1
            tally.add(kind, number, f"grew by {grown:.0%}" if grown > GROWTH else None, pictures=count, grown=grown)


def _segment(model: Path, mode: str, count: int, file: Path) -> None:
    from sam_edge.runtimes.open import open_runtime
    from sam_edge.segment.everything import EverythingGenerator
    from sam_edge.segment.predictor import SamPredictor

    os.environ["OMP_NUM_THREADS"] = "1"
    runtime = open_runtime(str(model), device="cpu")
    rng = np.random.default_rng(0)
    memory = 0
    for number in range(count):
        # pictures of all sizes: caches by size would grow
        height, width = rng.integers(20, 200, 2)
        picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        if mode == "everything":
            EverythingGenerator(runtime, 4, pred_iou_thresh=0.0, stability_score_thresh=0.0).generate(picture)
        else:
            predictor = SamPredictor(runtime)
            predictor.set_image(picture)
            predictor.predict(box=np.array([2, 2, width - 2, height - 2]))
        if number == min(WARM, count // 2):
            memory = _resident()
    file.write_text(f"{memory} {_resident()}")


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
