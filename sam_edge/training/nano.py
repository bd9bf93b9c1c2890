"""The recipe of `nano`, the model that ships with sam-edge.

    python -m sam_edge.training.nano --data DIR --out runs/nano

`DIR` holds the SA-1B layout folders named in `PHOTOS`; their train split is used, with synthetic scenes beside.
In stages: views of 64 and 128 px first, where steps are cheap, then the model's own 256 px.
A killed run continues when it is started again.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.synthetic import SceneOptions, SyntheticScenes
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint
from sam_edge.models.known import NANO_CONFIG
from sam_edge.models.resize import resized
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.training.interactive import InteractiveOptions
from sam_edge.training.loop import LoopOptions, Progress
from sam_edge.training.stream import Source
from sam_edge.training.train import TrainOptions, train

PHOTOS = {"coco128": 2.0, "bbbc038": 1.0, "ccp": 2.0}
"""Folders of labelled photos and how often each is drawn; synthetic scenes are drawn as often as weight 1."""

PROMPTING = InteractiveOptions(box_share=0.6, rounds=2, interactive_share=0.1)

STAGES = (
    (
        64,
        TrainOptions(
            loop=LoopOptions(steps=700, learning_rate=6e-4, weight_decay=0.05, warmup_steps=50, ema_decay=0.99),
            batch_size=12,
            prompting=PROMPTING,
            prompts=8,
            max_zoom=5.0,
            whole=0.1,
            seed=0,
        ),
    ),
    (
        128,
        TrainOptions(
            loop=LoopOptions(steps=1000, learning_rate=5e-4, weight_decay=0.05, warmup_steps=30, ema_decay=0.995),
            batch_size=6,
            prompting=PROMPTING,
            prompts=8,
            max_zoom=4.0,
            whole=0.2,
            seed=1,
        ),
    ),
    (
        128,
        TrainOptions(
            loop=LoopOptions(steps=650, learning_rate=5e-4, weight_decay=0.05, warmup_steps=20, ema_decay=0.995),
            batch_size=8,
            prompting=PROMPTING,
            prompts=16,
            max_zoom=3.0,
            whole=0.3,
            seed=2,
        ),
    ),
    (
        256,
        TrainOptions(
            loop=LoopOptions(steps=280, learning_rate=4e-4, weight_decay=0.05, warmup_steps=10, ema_decay=0.99),
            batch_size=4,
            prompting=PROMPTING,
            prompts=16,
            max_zoom=2.0,
            whole=0.6,
            seed=3,
        ),
    ),
)
"""Side of the views in pixels, and how they are trained on. What prompts mean is learned where steps are cheap."""


def sources(data: Path) -> list[Source]:
    """The train split of every source of the recipe."""
    photos = [Source(Sa1bFolder(data / name, split="train"), weight) for name, weight in PHOTOS.items()]
    return [*photos, Source(SyntheticScenes(100_000, seed=0, options=SceneOptions(size=256)))]


def train_nano(data: Path, out: Path, device: str) -> EdgeSam:
    """Run all stages, leaving each as a checkpoint folder, the last as `out/nano` in float16."""
    mixed = sources(data)
    model: EdgeSam | None = None
    for number, (image_size, options) in enumerate(STAGES):
        last = number + 1 == len(STAGES)
        folder = out / ("nano" if last else f"stage-{number}")
        if is_checkpoint_folder(folder):
            model = load_checkpoint(folder).to(device)
            continue
        if model is None:
            model = EdgeSam(NANO_CONFIG.replace(image_size=image_size)).to(device)
            initialise(model, seed=0)
        model = resized(model, image_size)
        train(model, mixed, options, state_file=out / f"stage-{number}.state", on_step=_log(f"{image_size} px"))
        save_checkpoint(model, folder, half=last)
    assert model is not None
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
