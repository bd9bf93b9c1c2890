"""The recipe of `nano`, the model that ships with sam-edge.

    python -m sam_edge.training.nano --data DIR --out runs/nano

`DIR` holds the SA-1B layout folders named in `WEIGHTS`; their train split is used, with synthetic scenes beside.
In stages, from windows of the canvas to all of it, with the decoder alone in between, and nearly all on a smaller
canvas; two are averaged with those before: see `STAGES`.
A killed run continues when it is started again.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.synthetic import SceneOptions, SyntheticScenes
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint, weights_sha256
from sam_edge.models.known import NANO_CONFIG
from sam_edge.models.resize import resized
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.training.interactive import InteractiveOptions
from sam_edge.training.loop import LoopOptions, Progress
from sam_edge.training.stream import Source
from sam_edge.training.train import TrainOptions, train

SYNTHETIC = "synthetic"
WEIGHTS = {"coco128": 2.0, "bbbc038": 1.0, "ccp": 2.0, SYNTHETIC: 1.0}
"""Folders of labelled photos, and synthetic scenes, and how often each is drawn."""
LAST_WEIGHTS = {"coco128": 4.0, "bbbc038": 1.0, "ccp": 1.0, SYNTHETIC: 0.5}
"""The same in the last stage: what is hardest comes most."""

BOXES_AND_POINTS = InteractiveOptions(box_share=0.65, rounds=2, interactive_share=0.08)
HALF_BOXES = replace(BOXES_AND_POINTS, box_share=0.5)
CLICKS = InteractiveOptions(box_share=0.45, rounds=4, interactive_share=0.6)
ALL_PROMPTS = InteractiveOptions(box_share=0.5, rounds=3, interactive_share=0.25)
BOXES = InteractiveOptions(box_share=1.0, rounds=1)
WHOLE = {"batch_size": 4, "ellipses": 0.1, "max_zoom": 2.5, "whole": 0.55, "min_cells": 2}
"""Views of the whole canvas."""
WINDOWS = {"window": 128, "freeze_encoder": True}
"""Windows of half the canvas's side, for the decoder alone."""


def _stage(seed: int, steps: int, learning_rate: float, ema_decay: float, **options: Any) -> TrainOptions:
    loop = LoopOptions(
        steps=steps,
        learning_rate=learning_rate,
        optimizer="muon",
        weight_decay=0.05,
        warmup_steps=20,
        ema_decay=ema_decay,
        schedule="cosine" if options.get("window", 0) == 0 else "constant",
    )
    common: dict[str, Any] = {"prompting": BOXES_AND_POINTS, "prompts": 8, "min_cells": 6, "whole": 0.0}
    return TrainOptions(loop=loop, seed=seed, degrade=0.03, **common | options)


Average = Mapping[str, float]
"""Earlier stages and their shares of the weights: what one stage brings and another forgets (Wortsman et al. 2022)."""

STAGES: dict[str, TrainOptions | Average] = {
    "small-windows": _stage(4, 500, 1e-3, 0.97, window=64, batch_size=16, min_zoom=2.0, max_zoom=8.0),
    "windows": _stage(5, 350, 9e-4, 0.97, window=128, batch_size=8, max_zoom=4.0, whole=0.1),
    "first": _stage(6, 900, 7e-4, 0.99, batch_size=4, max_zoom=2.5, whole=0.55),
    "boxes": _stage(
        0,
        2800,
        1e-3,
        0.98,
        batch_size=2,
        prompts=16,
        prompting=BOXES,
        ellipses=1.0,
        min_zoom=2.0,
        max_zoom=5.0,
        **WINDOWS,
    ),
    "decoder": _stage(11, 250, 4e-4, 0.98, batch_size=8, ellipses=0.3, min_zoom=2.0, max_zoom=5.0, **WINDOWS),
    "both": _stage(12, 800, 5e-4, 0.99, window=128, batch_size=8, ellipses=0.2, min_zoom=2.0, max_zoom=5.0),
    "all": _stage(13, 1400, 5e-4, 0.995, **WHOLE),
    "points": _stage(14, 2600, 5e-4, 0.998, prompting=HALF_BOXES, **WHOLE),
    "drawn": _stage(
        20, 1100, 6e-4, 0.98, batch_size=2, prompts=32, ellipses=0.3, min_zoom=2.0, max_zoom=4.0, min_cells=2, **WINDOWS
    ),
    "joint": _stage(21, 700, 5e-4, 0.99, prompting=HALF_BOXES, **WHOLE),
    "alone": _stage(3, 900, 1e-3, 0.99, prompts=32, freeze_encoder=True, **WHOLE | {"batch_size": 2}),
    "clicks": _stage(
        22,
        520,
        5e-4,
        0.99,
        batch_size=4,
        prompting=CLICKS,
        ellipses=0.05,
        min_zoom=1.6,
        max_zoom=3.5,
        whole=0.05,
        min_cells=2,
        **WINDOWS,
    ),
    "clicks-kept": {"alone": 0.35, "clicks": 0.65},
    "larger": _stage(30, 260, 5e-4, 0.99, prompting=ALL_PROMPTS, **WHOLE | {"ellipses": 0.05}),
    "shrunk": _stage(
        31,
        420,
        5e-4,
        0.99,
        prompting=replace(ALL_PROMPTS, box_share=0.4),
        **WHOLE | {"ellipses": 0.05, "min_zoom": 0.6, "max_zoom": 1.5, "whole": 0.5},
    ),
    "nano": {"clicks-kept": 0.55, "shrunk": 0.45},
}
"""What prompts mean is learned on windows of the canvas, where steps are cheap; what a box is, on ellipses. Views of
"shrunk" shrink pictures as often as they enlarge them, or a point would find things as large as in the others."""
CANVASES = {"small-windows": 256, "larger": 384}
"""Image size in pixels from a stage on."""


def sources(data: Path, weights: Mapping[str, float]) -> list[Source]:
    """The train split of every source of the recipe."""
    scenes = SyntheticScenes(100_000, seed=0, options=SceneOptions(size=256))
    return [
        Source(scenes if name == SYNTHETIC else Sa1bFolder(data / name, split="train"), weight)
        for name, weight in weights.items()
    ]


def train_nano(data: Path, out: Path, device: str) -> EdgeSam:
    """Run all stages, leaving each as a checkpoint folder, the last as `out/nano` in float16."""
    model = EdgeSam(NANO_CONFIG.replace(image_size=CANVASES[next(iter(STAGES))]))
    initialise(model, seed=0)
    for name, stage in STAGES.items():
        folder = out / name
        if is_checkpoint_folder(folder):
            model = load_checkpoint(folder)
        else:
            model = on_canvas(model, CANVASES.get(name, model.config.image_size)).to(device)
            if isinstance(stage, TrainOptions):
                mixed = sources(data, LAST_WEIGHTS if name == "shrunk" else WEIGHTS)
                train(model, mixed, stage, state_file=out / f"{name}.state", on_step=_log(name))
            else:
                model = averaged(model, {part: (load_checkpoint(out / part), share) for part, share in stage.items()})
            save_checkpoint(model, folder, half=name == "nano")
    return model


def on_canvas(model: EdgeSam, canvas: int) -> EdgeSam:
    """The model for pictures of `canvas` pixels, its prompts' positions as far apart per pixel as before."""
    return model if canvas == model.config.image_size else resized(model, canvas, same_pixels=True)


def averaged(model: EdgeSam, parts: Mapping[str, tuple[EdgeSam, float]]) -> EdgeSam:
    """`model` with the average of named models' weights, each with its share, and its lineage with that step."""
    canvas, start = model.config.image_size, weights_sha256(model)
    states = [(on_canvas(part, canvas).state_dict(), share) for part, share in parts.values()]
    model.load_state_dict({name: sum(share * state[name] for state, share in states) for name in states[0][0]})
    shares = {name: share for name, (_, share) in parts.items()}
    model.config = model.config.with_step({"step": "average", "settings": {"shares": shares}, "parent_sha256": start})
    return model


def _log(stage: str) -> Callable[[Progress, dict[str, float]], None]:
    recent: list[dict[str, float]] = []

    def on_step(progress: Progress, report: dict[str, float]) -> None:
        recent.append(report)
        if progress.step % 50 == 0:
            means = {key: sum(r[key] for r in recent) / len(recent) for key in report if key in recent[0]}
            values = " ".join(f"{key} {value:.3f}" for key, value in means.items())
            wait = progress.data_wait_seconds / progress.seconds
            print(
                f"{time.strftime('%H:%M:%S')} {stage} step {progress.step} {values} "
                f"{progress.step / progress.seconds:.2f} steps/s, waiting {wait:.0%}",
                flush=True,
            )
            recent.clear()

    return on_step


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled folders")
    parser.add_argument("--out", type=Path, required=True, help="where states and checkpoints go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    train_nano(args.data, args.out, args.device)


if __name__ == "__main__":
    main()
