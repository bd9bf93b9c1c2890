"""`train`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sam_edge.cli.option_docs import doc
from sam_edge.cli.options import MODEL_HELP, Course, ImagesRoot, Json, OnDevice, Optimizer, Out, Seed, SplitName, Strict
from sam_edge.cli.output import progress, report

_LOOP = partial(doc, "sam_edge.training.loop", "LoopOptions")
_TRAIN = partial(doc, "sam_edge.training.train", "TrainOptions")
_WEIGHTS = partial(doc, "sam_edge.compress.full_stage", "LossWeights")
_FEATURES = partial(doc, "sam_edge.training.features", "FeatureOptions")
_PROMPTING = partial(doc, "sam_edge.training.interactive", "InteractiveOptions")

TAUGHT, FEATURED = "With --teacher", "With --features"
"""Headings of the options that only a teacher, or a classifier, gives a meaning to."""


def train(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="DATA[=WEIGHT]",
            help="Labelled pictures: a folder in SA-1B's layout, a .tar of it or a folder of tars, COCO instances "
            "json, or synthetic[:COUNT[:SEED]]. Repeat to mix; WEIGHT is how often it is drawn.",
        ),
    ],
    out: Out,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=f"What to fine-tune. {MODEL_HELP}")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of MODEL: config.json, or the same as TOML, to train from scratch."),
    ] = None,
    split: Annotated[
        SplitName, typer.Option(help="What to train on; only `train` leaves pictures to validate on.")
    ] = "train",
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Learn its embedding, output tokens and masks too, beside the labels (TinySAM, eq. 4).",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help=_WEIGHTS("alpha"), rich_help_panel=TAUGHT)] = 1.0,
    beta: Annotated[float, typer.Option(help=_WEIGHTS("beta"), rich_help_panel=TAUGHT)] = 0.3,
    gamma: Annotated[float, typer.Option(help=_WEIGHTS("gamma"), rich_help_panel=TAUGHT)] = 0.01,
    features: Annotated[str | None, typer.Option(metavar="NAME[=FILE]", help=_FEATURES("classifier"))] = None,
    feature_weight: Annotated[float, typer.Option(help=_FEATURES("weight"), rich_help_panel=FEATURED)] = 4.0,
    steps: Annotated[int, typer.Option(help=_LOOP("steps"))] = 10_000,
    batch_size: Annotated[int, typer.Option(help=_TRAIN("batch_size"))] = 8,
    accumulate: Annotated[int, typer.Option(help=_LOOP("accumulate"))] = 1,
    learning_rate: Annotated[float, typer.Option(help=_LOOP("learning_rate"))] = 1e-4,
    rate: Annotated[list[str] | None, typer.Option(metavar="PATTERN=FACTOR", help=_LOOP("rates"))] = None,
    warmup_steps: Annotated[int, typer.Option(help=_LOOP("warmup_steps"))] = 200,
    schedule: Annotated[Course, typer.Option(help=_LOOP("schedule"))] = "cosine",
    optimizer: Annotated[Optimizer, typer.Option(help=_LOOP("optimizer"))] = "adamw",
    weight_decay: Annotated[float, typer.Option(help=_LOOP("weight_decay"))] = 0.05,
    clip_norm: Annotated[float, typer.Option(help=_LOOP("clip_norm"))] = 1.0,
    ema_decay: Annotated[float, typer.Option(help=_LOOP("ema_decay"))] = 0.999,
    bf16: Annotated[bool, typer.Option("--bf16", help=_LOOP("bf16"))] = False,
    prompts: Annotated[int, typer.Option(help=_TRAIN("prompts"))] = 16,
    box_share: Annotated[float, typer.Option(help=_PROMPTING("box_share"))] = 0.5,
    box_jitter: Annotated[float, typer.Option(help=_PROMPTING("box_jitter"))] = 0.1,
    interior_share: Annotated[float, typer.Option(help=_PROMPTING("interior_share"))] = 0.5,
    rounds: Annotated[int, typer.Option(help=_PROMPTING("rounds"))] = 3,
    interactive_share: Annotated[float, typer.Option(help=_PROMPTING("interactive_share"))] = 0.25,
    window: Annotated[int, typer.Option(help=_TRAIN("window"))] = 0,
    freeze: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help=_TRAIN("freeze"))] = None,
    min_zoom: Annotated[float, typer.Option(help=_TRAIN("min_zoom"))] = 1.0,
    max_zoom: Annotated[float, typer.Option(help=_TRAIN("max_zoom"))] = 3.0,
    min_cells: Annotated[int, typer.Option(help=_TRAIN("min_cells"))] = 12,
    target_scale: Annotated[int, typer.Option(help=_TRAIN("target_scale"))] = 1,
    small_first: Annotated[float, typer.Option(help=_TRAIN("small_first"))] = 0.0,
    whole: Annotated[float, typer.Option(help=_TRAIN("whole"))] = 0.3,
    ellipses: Annotated[float, typer.Option(help=_TRAIN("ellipses"))] = 0.0,
    largest_ellipse: Annotated[float, typer.Option(help=_TRAIN("largest_ellipse"))] = 0.0,
    nothing: Annotated[float, typer.Option(help=_TRAIN("nothing"))] = 0.0,
    colour: Annotated[float, typer.Option(help=_TRAIN("colour"))] = 0.2,
    degrade: Annotated[float, typer.Option(help=_TRAIN("degrade"))] = 0.0,
    copy_paste: Annotated[float, typer.Option(help=_TRAIN("copy_paste"))] = 0.0,
    validate_every: Annotated[int, typer.Option(help=_LOOP("validate_every"))] = 1000,
    validation_images: Annotated[int, typer.Option(help="Pictures of each source's val split to validate on.")] = 64,
    checkpoint_seconds: Annotated[float, typer.Option(help=_LOOP("checkpoint_seconds"))] = 120.0,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    workers: Annotated[int, typer.Option(help=_TRAIN("workers"))] = 2,
    images_root: ImagesRoot = None,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Train or fine-tune a model on labelled pictures, with points, boxes and masks over several rounds as SAM was.

    Killed and started again with the same command, it continues, to the same weights on a CPU. For several processes:
    torchrun --nproc-per-node N -m sam_edge train ...
    """
    from sam_edge.commands.workshop.train import train_model
    from sam_edge.compress.full_stage import LossWeights
    from sam_edge.data.unreadable import left_out
    from sam_edge.training.features import FeatureOptions
    from sam_edge.training.interactive import InteractiveOptions
    from sam_edge.training.loop import LoopOptions
    from sam_edge.training.train import TrainOptions

    options = TrainOptions(
        loop=LoopOptions(
            steps=steps,
            learning_rate=learning_rate,
            rates=tuple(map(_pattern_and_factor, rate or ())),
            optimizer=optimizer,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_steps=warmup_steps,
            accumulate=accumulate,
            clip_norm=clip_norm,
            ema_decay=ema_decay,
            bf16=bf16,
            checkpoint_seconds=checkpoint_seconds,
            validate_every=validate_every,
        ),
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        prompting=InteractiveOptions(
            box_share=box_share,
            box_jitter=box_jitter,
            interior_share=interior_share,
            rounds=rounds,
            interactive_share=interactive_share,
        ),
        prompts=prompts,
        window=window,
        freeze=tuple(freeze or ()),
        min_zoom=min_zoom,
        max_zoom=max_zoom,
        min_cells=min_cells,
        target_scale=target_scale,
        small_first=small_first,
        whole=whole,
        ellipses=ellipses,
        largest_ellipse=largest_ellipse,
        nothing=nothing,
        colour=colour,
        degrade=degrade,
        copy_paste=copy_paste,
        features=FeatureOptions(features, feature_weight) if features else None,
    )
    with progress("train") as on_progress:
        result = train_model(
            model,
            config,
            data,
            out,
            options,
            split=split,
            validation_images=validation_images,
            teacher=teacher,
            teaching=LossWeights(alpha, beta, gamma, labels=0.0),
            half=half,
            device=device,
            strict=strict,
            images_root=images_root,
            on_progress=on_progress,
        )
    if result is None:
        # another process of the torchrun reports
        return
    text = f"{out}: {result['steps']} steps in {result['seconds']:.0f} s, {result['views_per_second']:.1f} views/s"
    text += f", {result['data_wait_share']:.0%} waiting for data, loss {result['loss']:.3f}"
    if result["best_score"] is not None:
        best = max((entry for entry in result["history"] if "score" in entry), key=lambda entry: entry["score"])
        text += f"; best at step {best['step']:.0f}: box mIoU {best['box']:.3f}, point {best['point']:.3f}"
    report(as_json, result, text + left_out(result["unreadable"]))


def _pattern_and_factor(text: str) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        return pattern, float(factor)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no PATTERN=FACTOR, as in 'mask_decoder.*=0.1'.") from None
