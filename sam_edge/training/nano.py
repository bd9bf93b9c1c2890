"""The recipe of `nano`, the model that ships with sam-edge.

    python -m sam_edge.training.nano --data DIR --out runs/nano

`DIR` holds the SA-1B layout folders named in `WEIGHTS`; their train split is used, with synthetic scenes beside.
In stages, from windows of the canvas to all of it, with the decoder alone in between, and most on a smaller canvas;
several are averaged: see `STAGES`.
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
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint, weights_sha256
from sam_edge.models.resize import resized
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.scenes.synthetic import SceneOptions, SyntheticScenes
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import NANO_CONFIG
from sam_edge.training.interactive import InteractiveOptions
from sam_edge.training.loop import LoopOptions, Progress
from sam_edge.training.stream import Source
from sam_edge.training.train import TrainOptions, train

SYNTHETIC = "synthetic"
WEIGHTS = {"coco128": 2.0, "bbbc038": 1.0, "ccp": 2.0, SYNTHETIC: 1.0}
"""Folders of labelled photos, and synthetic scenes, and how often each is drawn."""
HARDEST = {"coco128": 4.0, "bbbc038": 1.0, "ccp": 1.0, SYNTHETIC: 0.5}
"""The same where what is hardest comes most."""
HARDEST_OF_PICTURES = {"coco128": 5.0, "bbbc038": 0.6, "ccp": 2.0, SYNTHETIC: 0.4}
HARDEST_OF_WINDOWS = {"coco128": 5.0, "bbbc038": 0.8, "ccp": 1.0, SYNTHETIC: 0.5}
"""The same at 512 px."""

BOXES_AND_POINTS = InteractiveOptions(box_share=0.65, rounds=2, interactive_share=0.08)
HALF_BOXES = replace(BOXES_AND_POINTS, box_share=0.5)
CLICKS = InteractiveOptions(box_share=0.45, rounds=4, interactive_share=0.6)
ALL_PROMPTS = InteractiveOptions(box_share=0.5, rounds=3, interactive_share=0.25)
BOXES = InteractiveOptions(box_share=1.0, rounds=1)
EXACT_BOXES = InteractiveOptions(box_share=0.8, box_jitter=0.05, rounds=1, interactive_share=0.0)
WHOLE = {"batch_size": 4, "ellipses": 0.1, "max_zoom": 2.5, "whole": 0.55, "min_cells": 2}
"""Views of the whole canvas."""
WINDOWS = {"window": 128, "freeze_encoder": True}
"""Windows of half the canvas's side, for the decoder alone."""
FINE_CLICKS = WINDOWS | {
    "window": 256,
    "batch_size": 1,
    "prompting": CLICKS,
    "ellipses": 0.05,
    "small_first": 0.1,
    "min_zoom": 1.2,
}
"""The same at 512 px, clicked on over several rounds."""
WIDE_CLICKS = FINE_CLICKS | {
    "prompting": InteractiveOptions(box_share=0.4, rounds=4, interactive_share=0.5),
    "min_zoom": 1.0,
    "max_zoom": 3.0,
}
"""The same, of larger parts of pictures."""
HALF_WINDOWS = {"window": 256, "batch_size": 2, "largest_ellipse": 18, "copy_paste": 0.15}
"""Windows of half the side of 512 px, for all weights."""
FINE_ELLIPSES = WINDOWS | {
    "window": 64,
    "batch_size": 16,
    "prompting": EXACT_BOXES,
    "largest_ellipse": 18,
    "target_scale": 2,
    "min_zoom": 4.0,
    "max_zoom": 12.0,
}
"""Windows of an eighth of its side, asked for masks as fine as their pixels, and often for small ellipses."""


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


def _branch(seed: int, steps: int, learning_rate: float, ema_decay: float, **options: Any) -> TrainOptions:
    """A stage that is averaged with others: in bfloat16, its learning rate falls to 0."""
    stage = _stage(seed, steps, learning_rate, ema_decay, **{"prompts": 16, "min_cells": 2} | options)
    return replace(stage, loop=replace(stage.loop, warmup_steps=10, schedule="cosine", bf16=True))


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
    "at-384": {"clicks-kept": 0.55, "shrunk": 0.45},
    "pictures": _branch(
        201,
        440,
        8e-4,
        0.985,
        batch_size=1,
        prompting=InteractiveOptions(box_share=0.6, rounds=3, interactive_share=0.15),
        min_zoom=0.6,
        max_zoom=1.8,
        whole=0.5,
        copy_paste=0.15,
    ),
    "fine-windows": _branch(
        202,
        520,
        1e-3,
        0.98,
        prompting=InteractiveOptions(box_share=0.55, rounds=2, interactive_share=0.1),
        ellipses=0.25,
        largest_ellipse=32,
        small_first=0.2,
        batch_size=4,
        min_zoom=2.0,
        max_zoom=6.0,
        **WINDOWS,
    ),
    "fine-ellipses": _branch(203, 700, 9e-4, 0.98, ellipses=0.6, **FINE_ELLIPSES),
    "fine-clicks": _branch(204, 450, 7e-4, 0.985, max_zoom=3.5, **FINE_CLICKS),
    "fine": {"at-384": 0.15, "pictures": 0.15, "fine-ellipses": 0.4, "fine-clicks": 0.3},
    "finer-ellipses": _branch(
        223,
        600,
        9e-4,
        0.98,
        ellipses=0.5,
        small_first=0.2,
        **FINE_ELLIPSES | {"prompting": replace(EXACT_BOXES, box_share=0.65)},
    ),
    "finer-windows": _branch(
        224,
        360,
        8e-4,
        0.985,
        prompting=InteractiveOptions(box_share=0.6, rounds=3, interactive_share=0.2),
        ellipses=0.1,
        small_first=0.2,
        min_zoom=1.2,
        max_zoom=3.5,
        **HALF_WINDOWS,
    ),
    "finer": {"at-384": 0.15, "finer-ellipses": 0.45, "finer-windows": 0.4},
    "finest-clicks": _branch(231, 360, 7e-4, 0.985, max_zoom=3.0, **FINE_CLICKS),
    "finest": {"at-384": 0.15, "finer-ellipses": 0.35, "finer-windows": 0.1, "finest-clicks": 0.4},
    "last-windows": _branch(
        301,
        560,
        8e-4,
        0.985,
        prompting=InteractiveOptions(box_share=0.5, rounds=3, interactive_share=0.3),
        whole=0.05,
        ellipses=0.05,
        small_first=0.15,
        **HALF_WINDOWS,
    ),
    "last-clicks": _branch(302, 600, 7e-4, 0.985, **WIDE_CLICKS),
    "last": {"finest": 0.4, "last-clicks": 0.45, "last-windows": 0.15},
    "nothing-windows": _branch(321, 520, 7e-4, 0.985, prompts=20, nothing=0.2, whole=0.1, **WIDE_CLICKS),
    "nothing-pictures": _branch(
        322,
        300,
        7e-4,
        0.98,
        batch_size=1,
        prompts=20,
        prompting=InteractiveOptions(box_share=0.4, rounds=2, interactive_share=0.25),
        freeze_encoder=True,
        whole=0.5,
        ellipses=0.03,
        nothing=0.25,
        small_first=0.1,
        min_zoom=0.8,
        max_zoom=1.8,
    ),
    "nano": {"last": 0.55, "nothing-windows": 0.2, "nothing-pictures": 0.1, "finer-ellipses": 0.15},
}
"""What prompts mean is learned on windows of the canvas, where steps are cheap; what a box is, on ellipses. Views of
"shrunk" shrink pictures as often as they enlarge them, or a point would find things as large as in the others. At
512 px the smallest things are learned in windows of 64 px, and what those forget is averaged in. Last come points on
nothing labelled, by which the predicted IoU learns to tell things from ground."""
MIXES = {
    "shrunk": HARDEST,
    "pictures": HARDEST_OF_PICTURES,
    "fine-windows": HARDEST_OF_WINDOWS,
    "fine-ellipses": HARDEST_OF_WINDOWS,
    "fine-clicks": HARDEST_OF_WINDOWS,
    "finer-ellipses": HARDEST_OF_WINDOWS,
    "finer-windows": HARDEST_OF_WINDOWS,
    "finest-clicks": HARDEST_OF_WINDOWS,
    "last-windows": HARDEST_OF_WINDOWS | {"ccp": 1.2},
    "last-clicks": HARDEST_OF_WINDOWS | {"ccp": 1.2},
    "nothing-windows": HARDEST_OF_WINDOWS | {"ccp": 1.5},
    "nothing-pictures": HARDEST_OF_WINDOWS | {"ccp": 1.5},
}
"""Sources of the stages that do not have `WEIGHTS`."""
STARTS = {
    "fine-windows": "at-384",
    "fine-clicks": "fine-windows",
    "finer-windows": "fine",
    "last-clicks": "finest",
    "nothing-pictures": "last",
}
"""Stages that start from another one than the one before."""
CANVASES = {"small-windows": 256, "larger": 384, "pictures": 512}
"""Image size in pixels from a stage on."""
CLICKS_DRAWN = "pictures"
"""The stage from which on clicks are drawn."""


def sources(data: Path, weights: Mapping[str, float]) -> list[Source]:
    """The train split of every source of the recipe."""
    scenes = SyntheticScenes(100_000, seed=0, options=SceneOptions(size=256))
    return [
        Source(scenes if name == SYNTHETIC else Sa1bFolder(data / name, split="train"), weight)
        for name, weight in weights.items()
    ]


def train_nano(data: Path, out: Path, device: str) -> EdgeSam:
    """Run all stages, leaving each as a checkpoint folder, the last as `out/nano` in float16."""
    size, draws_points = CANVASES[next(iter(STAGES))], False
    model = EdgeSam(drawing_clicks(NANO_CONFIG, draws_points).replace(image_size=size))
    initialise(model, seed=0)
    for name, stage in STAGES.items():
        folder = out / name
        size, draws_points = CANVASES.get(name, size), draws_points or name == CLICKS_DRAWN
        if is_checkpoint_folder(folder):
            model = load_checkpoint(folder)
            continue
        if isinstance(stage, TrainOptions):
            if name in STARTS:
                model = load_checkpoint(out / STARTS[name])
            model = on_canvas(model, size, draws_points).to(device)
            mixed = sources(data, MIXES.get(name, WEIGHTS))
            train(model, mixed, stage, state_file=out / f"{name}.state", on_step=_log(name))
        else:
            parts = {part: on_canvas(load_checkpoint(out / part), size, draws_points) for part in stage}
            model = averaged(parts, stage).to(device)
        save_checkpoint(model, folder, half=name == "nano")
    return model


def on_canvas(model: EdgeSam, canvas: int, draws_points: bool) -> EdgeSam:
    """The model for pictures of `canvas` pixels, its prompts' positions as far apart per pixel as before, and with its
    clicks drawn or not, which takes no weights."""
    if canvas != model.config.image_size:
        model = resized(model, canvas, same_pixels=True)
    if draws_points == model.config.decoder.draws_points:
        return model
    other = EdgeSam(drawing_clicks(model.config, draws_points))
    other.load_state_dict(model.state_dict())
    return other


def drawing_clicks(config: ModelConfig, draws_points: bool) -> ModelConfig:
    """`config` with clicks drawn or not."""
    return config.replace(decoder=replace(config.decoder, draws_points=draws_points))


def averaged(parts: Mapping[str, EdgeSam], shares: Mapping[str, float]) -> EdgeSam:
    """A model with the average of named models' weights, each with its share; its lineage has the steps of all."""
    states = {name: part.state_dict() for name, part in parts.items()}
    model = EdgeSam(next(iter(parts.values())).config)
    weights = {name: sum(share * states[part][name] for part, share in shares.items()) for name in model.state_dict()}
    model.load_state_dict(weights)
    steps: list[dict[str, Any]] = []
    for part in parts.values():
        steps += [step for step in part.config.lineage if step not in steps]
    parents = {name: weights_sha256(part) for name, part in parts.items()}
    step = {"step": "average", "settings": {"shares": dict(shares)}, "parents_sha256": parents}
    model.config = model.config.replace(lineage=tuple(steps)).with_step(step)
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
