"""The recipe of `nano`, the model that ships with sam-edge.

    python -m sam_edge.training.nano --data DIR --out runs/nano

`DIR` holds the SA-1B layout folders named in `PHOTOS`; their train split is used, with synthetic scenes beside.
Two stages: cheap views of 128 px first, for what textures and edges mean, then the model's own 256 px.
A killed run continues when it is started again.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.synthetic import SceneOptions, SyntheticScenes
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint
from sam_edge.models.registry import NANO_CONFIG
from sam_edge.models.resize import resized
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.training.interactive import InteractiveOptions
from sam_edge.training.loop import LoopOptions, Progress
from sam_edge.training.stream import Source
from sam_edge.training.train import TrainOptions, train

PHOTOS = {"coco128": 2.0, "bbbc038": 1.0, "ccp": 2.0}
"""Folders of labelled photos and how often each is drawn; synthetic scenes are drawn as often as weight 1."""

PROMPTING = InteractiveOptions(rounds=2, interactive_share=0.1)

FIRST = TrainOptions(
    loop=LoopOptions(steps=2200, learning_rate=6e-4, weight_decay=0.05, warmup_steps=100, ema_decay=0.998),
    batch_size=4,
    prompts=8,
    prompting=PROMPTING,
    max_zoom=5.0,
    whole=0.15,
    seed=0,
)
SECOND = TrainOptions(
    loop=LoopOptions(steps=450, learning_rate=4e-4, weight_decay=0.05, warmup_steps=50, ema_decay=0.995),
    batch_size=4,
    prompts=8,
    prompting=PROMPTING,
    max_zoom=3.0,
    whole=0.4,
    seed=1,
)


def sources(data: Path) -> list[Source]:
    """The train split of every source of the recipe."""
    photos = [Source(Sa1bFolder(data / name, split="train"), weight) for name, weight in PHOTOS.items()]
    return [*photos, Source(SyntheticScenes(100_000, seed=0, options=SceneOptions(size=256)))]


def train_nano(data: Path, out: Path, first_steps: int, second_steps: int, device: str) -> EdgeSam:
    """Run both stages, leaving `out/first` and `out/nano` as checkpoint folders."""
    mixed = sources(data)
    if is_checkpoint_folder(out / "first"):
        model = load_checkpoint(out / "first").to(device)
    else:
        model = EdgeSam(NANO_CONFIG.replace(image_size=128)).to(device)
        initialise(model, seed=0)
        options = replace(FIRST, loop=replace(FIRST.loop, steps=first_steps))
        train(model, mixed, options, state_file=out / "first.state", on_step=_log("128 px"))
        save_checkpoint(model, out / "first")
    model = resized(model, NANO_CONFIG.image_size)
    options = replace(SECOND, loop=replace(SECOND.loop, steps=second_steps))
    train(model, mixed, options, state_file=out / "second.state", on_step=_log("256 px"))
    save_checkpoint(model, out / "nano", half=True)
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
    parser.add_argument("--first-steps", type=int, default=FIRST.loop.steps)
    parser.add_argument("--second-steps", type=int, default=SECOND.loop.steps)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    train_nano(args.data, args.out, args.first_steps, args.second_steps, args.device)


if __name__ == "__main__":
    main()
