"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sam_edge import __version__
from sam_edge.errors import SamEdgeError
from sam_edge.option_docs import doc

app = typer.Typer(
    name="sam-edge",
    help="Make a Segment Anything model small and fast, and show what it cost in accuracy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Device(StrEnum):
    """Where models run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class RuntimeName(StrEnum):
    """What runs a model."""

    auto = "auto"
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    openvino_bf16 = "openvino-bf16"
    tensorrt = "tensorrt"


class Precision(StrEnum):
    """Precision of exported graphs."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Dialect(StrEnum):
    """Form of INT8 graphs."""

    cpu = "cpu"
    tensorrt = "tensorrt"


class Flavor(StrEnum):
    """Which TensorRT."""

    rtx = "rtx"
    standard = "standard"


class Strategy(StrEnum):
    """Which points of the grid everything mode asks."""

    grid = "grid"
    hierarchical = "hierarchical"


class Prompt(StrEnum):
    """What masks are prompted with."""

    point = "point"
    box = "box"


class SplitName(StrEnum):
    """Part of a labelled data set, by the hash of the file name."""

    train = "train"
    val = "val"
    all = "all"


class Importance(StrEnum):
    """Measure of a channel's importance."""

    disturbed_taylor = "disturbed-taylor"
    taylor = "taylor"
    hessian = "hessian"
    magnitude = "magnitude"
    random = "random"


class Method(StrEnum):
    """Compression method."""

    slimsam = "slimsam"
    tinysam = "tinysam"


class DecoderStart(StrEnum):
    """What becomes of a student's decoder."""

    trained = "trained"
    frozen = "frozen"
    scratch = "scratch"


class Projection(StrEnum):
    """How a student's channels become its teacher's."""

    folded = "folded"
    kept = "kept"


class Labels(StrEnum):
    """Whose masks a student learns."""

    auto = "auto"
    data = "data"
    teacher = "teacher"


class StoredPrecision(StrEnum):
    """How embeddings are kept."""

    fp16 = "fp16"
    int8 = "int8"


class Schedule(StrEnum):
    """Order of pruning and distillation."""

    alternate = "alternate"
    one_step = "one-step"


class Accumulation(StrEnum):
    """How gradients of many pictures become one importance."""

    absolute = "absolute"
    signed = "signed"


class Ranking(StrEnum):
    """Whether blocks lose equally much."""

    local = "local"
    global_ = "global"


class Normalization(StrEnum):
    """What makes blocks comparable."""

    sum = "sum"
    mean = "mean"
    max = "max"
    standardization = "standardization"
    gaussian = "gaussian"


class Optimizer(StrEnum):
    """What turns gradients into steps."""

    adamw = "adamw"
    adam = "adam"
    muon = "muon"


class Course(StrEnum):
    """Course of the learning rate."""

    cosine = "cosine"
    constant = "constant"
    plateau = "plateau"


class Metric(StrEnum):
    """How scales are chosen."""

    hessian = "hessian"
    mse = "mse"
    minmax = "minmax"


class Curvature(StrEnum):
    """Where the hessian metric takes second derivatives."""

    fisher = "fisher"
    quantized = "quantized"


_QUANTIZE = partial(doc, "sam_edge.quantize.ptq", "QuantizeOptions")
_SLIM = partial(doc, "sam_edge.compress.slimming")
_PRUNE = partial(doc, "sam_edge.compress.widths")
_IMPORTANCE = partial(doc, "sam_edge.compress.importance")
_DISTIL = partial(doc, "sam_edge.compress.distil")
_TINYSAM = partial(doc, "sam_edge.compress.tinysam", "TinySamOptions")
_WEIGHTS = partial(doc, "sam_edge.compress.full_stage", "LossWeights")
_HARD = partial(doc, "sam_edge.compress.hard_prompts", "HardPromptOptions")
_STUDENT = partial(doc, "sam_edge.compress.student", "StudentOptions")
_EMBED = partial(doc, "sam_edge.compress.embeddings", "EmbedOptions")
_SOURCES = partial(doc, "sam_edge.distilling", "DistilSources")
_EVERYTHING = partial(doc, "sam_edge.segmenting")
_CALIBRATE = partial(doc, "sam_edge.segment.calibrate")
_LOOP = partial(doc, "sam_edge.training.loop", "LoopOptions")
_TRAIN = partial(doc, "sam_edge.training.train", "TrainOptions")
_PROMPTING = partial(doc, "sam_edge.training.interactive", "InteractiveOptions")

TINYSAM = "With --method tinysam"
"""Heading of the options that only this method has."""
MODEL_HELP = (
    "A known name (see `sam-edge models`), a checkpoint file (.pth, .pt, .safetensors), a checkpoint folder, "
    "an exported folder, or random:NAME for a known architecture with random weights."
)
DEFAULT_IMAGES = "synthetic:64"
"""Pictures that always exist, where `--images` may be left out."""
IMAGES_HELP = "Folder of photos, without labels; or synthetic[:COUNT[:SEED]]."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Images = Annotated[str, typer.Option("--images", metavar="DIR", help=IMAGES_HELP)]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; appears whole or not at all.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random in this command.")]
OnDevice = Annotated[Device, typer.Option("--device", help="Where the model runs; auto takes a GPU if there is one.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an unreadable picture instead of skipping it.")]
AsRuntime = Annotated[
    RuntimeName,
    typer.Option("--runtime", help="auto: torch for checkpoints, ONNX Runtime for exported folders."),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def models(as_json: Json = False) -> None:
    """List the known models: size, cost, where the weights come from and under which licence."""
    from rich.table import Table

    from sam_edge import steps
    from sam_edge.bench.units import count

    found = steps.models()
    if as_json:
        _print_json({"models": found})
        return
    table = Table(title="Known models", caption="MACs of the image encoder, without / with attention products")
    for heading in ("name", "parameters", "MACs", "licence", "source"):
        table.add_column(heading, overflow="fold")
    for row in found:
        macs = f"{count(row['encoder_macs'])} / {count(row['encoder_macs_with_attention'])}"
        table.add_row(row["name"], count(row["parameters"]), macs, row["licence"], row["source"])
    _stdout().print(table)


@app.command()
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
    split: Annotated[SplitName, typer.Option(help="What to train on; only `train` leaves pictures to validate on.")] = (
        SplitName.train
    ),
    steps: Annotated[int, typer.Option(help=_LOOP("steps"))] = 10_000,
    batch_size: Annotated[int, typer.Option(help=_TRAIN("batch_size"))] = 8,
    accumulate: Annotated[int, typer.Option(help=_LOOP("accumulate"))] = 1,
    learning_rate: Annotated[float, typer.Option(help=_LOOP("learning_rate"))] = 1e-4,
    warmup_steps: Annotated[int, typer.Option(help=_LOOP("warmup_steps"))] = 200,
    schedule: Annotated[Course, typer.Option(help=_LOOP("schedule"))] = (Course.cosine),
    optimizer: Annotated[Optimizer, typer.Option(help=_LOOP("optimizer"))] = (Optimizer.adamw),
    weight_decay: Annotated[float, typer.Option(help=_LOOP("weight_decay"))] = 0.05,
    clip_norm: Annotated[float, typer.Option(help=_LOOP("clip_norm"))] = 1.0,
    ema_decay: Annotated[float, typer.Option(help=_LOOP("ema_decay"))] = 0.999,
    bf16: Annotated[bool, typer.Option("--bf16", help=_LOOP("bf16"))] = False,
    prompts: Annotated[int, typer.Option(help=_TRAIN("prompts"))] = 16,
    box_share: Annotated[float, typer.Option(help=_PROMPTING("box_share"))] = 0.5,
    rounds: Annotated[int, typer.Option(help=_PROMPTING("rounds"))] = 3,
    interactive_share: Annotated[float, typer.Option(help=_PROMPTING("interactive_share"))] = 0.25,
    min_zoom: Annotated[float, typer.Option(help=_TRAIN("min_zoom"))] = 1.0,
    max_zoom: Annotated[float, typer.Option(help=_TRAIN("max_zoom"))] = 3.0,
    whole: Annotated[float, typer.Option(help=_TRAIN("whole"))] = 0.3,
    colour: Annotated[float, typer.Option(help=_TRAIN("colour"))] = 0.2,
    degrade: Annotated[float, typer.Option(help=_TRAIN("degrade"))] = 0.0,
    copy_paste: Annotated[float, typer.Option(help=_TRAIN("copy_paste"))] = 0.0,
    validate_every: Annotated[int, typer.Option(help=_LOOP("validate_every"))] = 1000,
    validation_images: Annotated[int, typer.Option(help="Pictures of each source's val split to validate on.")] = 64,
    checkpoint_seconds: Annotated[float, typer.Option(help=_LOOP("checkpoint_seconds"))] = 120.0,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    workers: Annotated[int, typer.Option(help=_TRAIN("workers"))] = 2,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Train or fine-tune a model on labelled pictures, with points, boxes and masks over several rounds as SAM was.

    Killed and started again with the same command, it continues, to the same weights on a CPU. For several processes:
    torchrun --nproc-per-node N -m sam_edge train ...
    """
    from sam_edge.training.interactive import InteractiveOptions
    from sam_edge.training.loop import LoopOptions
    from sam_edge.training.train import TrainOptions
    from sam_edge.training_step import train_model

    options = TrainOptions(
        loop=LoopOptions(
            steps=steps,
            learning_rate=learning_rate,
            optimizer=optimizer.value,
            weight_decay=weight_decay,
            schedule=schedule.value,
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
        prompting=InteractiveOptions(box_share=box_share, rounds=rounds, interactive_share=interactive_share),
        prompts=prompts,
        min_zoom=min_zoom,
        max_zoom=max_zoom,
        whole=whole,
        colour=colour,
        degrade=degrade,
        copy_paste=copy_paste,
    )
    with _progress("train") as on_progress:
        result = train_model(
            model,
            config,
            data,
            out,
            options,
            split=split.value,
            validation_images=validation_images,
            half=half,
            device=device.value,
            strict=strict,
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
    _report(as_json, result, text)


@app.command()
def compress(
    model: Model,
    images: Images,
    out: Out,
    method: Annotated[Method, typer.Option(help="Compression method.")] = Method.slimsam,
    schedule: Annotated[Schedule, typer.Option(help=_SLIM("SlimOptions", "schedule"))] = Schedule.alternate,
    ratio: Annotated[float, typer.Option(help=_PRUNE("PruneOptions", "ratio"))] = 0.5,
    importance: Annotated[
        Importance, typer.Option(help=_PRUNE("PruneOptions", "importance"))
    ] = Importance.disturbed_taylor,
    importance_images: Annotated[int, typer.Option(help=_IMPORTANCE("ImportanceOptions", "images"))] = 1000,
    accumulation: Annotated[
        Accumulation, typer.Option(help=_IMPORTANCE("ImportanceOptions", "accumulation"))
    ] = Accumulation.absolute,
    ranking: Annotated[Ranking, typer.Option(help=_PRUNE("PruneOptions", "ranking"))] = Ranking.global_,
    normalization: Annotated[
        Normalization, typer.Option(help=_PRUNE("PruneOptions", "normalization"))
    ] = Normalization.gaussian,
    round_to: Annotated[int, typer.Option(help=_PRUNE("PruneOptions", "round_to"))] = 0,
    epochs: Annotated[int | None, typer.Option(help=_DISTIL("DistilOptions", "epochs"))] = None,
    align_epochs: Annotated[int, typer.Option(help=_DISTIL("DistilOptions", "align_epochs"))] = 10,
    batch_size: Annotated[int, typer.Option(help=_DISTIL("DistilOptions", "batch_size"))] = 4,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of Adam; by default 1e-4, with tinysam 1e-3.")
    ] = None,
    views: Annotated[int, typer.Option(help=_DISTIL("DistilOptions", "views"))] = 1,
    cache_gb: Annotated[float, typer.Option(help=_DISTIL("DistilOptions", "cache_gb"))] = 32.0,
    student: Annotated[str | None, typer.Option(help=_STUDENT("student"), rich_help_panel=TINYSAM)] = None,
    student_size: Annotated[int | None, typer.Option(help=_STUDENT("image_size"), rich_help_panel=TINYSAM)] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help=_STUDENT("pretrained"), rich_help_panel=TINYSAM)
    ] = False,
    decoder: Annotated[DecoderStart, typer.Option(help=_STUDENT("decoder"), rich_help_panel=TINYSAM)] = (
        DecoderStart.trained
    ),
    projection: Annotated[Projection, typer.Option(help=_STUDENT("projection"), rich_help_panel=TINYSAM)] = (
        Projection.folded
    ),
    labels: Annotated[Labels, typer.Option(help=_SOURCES("labels"), rich_help_panel=TINYSAM)] = Labels.auto,
    embeddings: Annotated[
        Path | None, typer.Option(metavar="DIR", help=_SOURCES("embeddings"), rich_help_panel=TINYSAM)
    ] = None,
    alpha: Annotated[float, typer.Option(help=_WEIGHTS("alpha"), rich_help_panel=TINYSAM)] = 1.0,
    beta: Annotated[float, typer.Option(help=_WEIGHTS("beta"), rich_help_panel=TINYSAM)] = 1.0,
    gamma: Annotated[float, typer.Option(help=_WEIGHTS("gamma"), rich_help_panel=TINYSAM)] = 1.0,
    label_weight: Annotated[float, typer.Option(help=_WEIGHTS("labels"), rich_help_panel=TINYSAM)] = 1.0,
    prompts: Annotated[int, typer.Option(help=_HARD("prompts"), rich_help_panel=TINYSAM)] = 64,
    box_share: Annotated[float, typer.Option(help=_HARD("box_share"), rich_help_panel=TINYSAM)] = 0.5,
    max_rounds: Annotated[int, typer.Option(help=_HARD("max_rounds"), rich_help_panel=TINYSAM)] = 9,
    accumulate: Annotated[
        bool, typer.Option("--accumulate", help=_HARD("accumulate"), rich_help_panel=TINYSAM)
    ] = False,
    negatives: Annotated[bool, typer.Option("--negatives", help=_HARD("negatives"), rich_help_panel=TINYSAM)] = False,
    ema_decay: Annotated[float, typer.Option(help=_TINYSAM("ema_decay"), rich_help_panel=TINYSAM)] = 0.99,
    validations: Annotated[int, typer.Option(help=_TINYSAM("validations"), rich_help_panel=TINYSAM)] = 8,
    workers: Annotated[int, typer.Option(help=_DISTIL("DistilOptions", "workers"))] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in bfloat16.")] = False,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Prune a model's image encoder and distil it back to accuracy, or distil it into a student, on your own photos.

    Killed and started again with the same command, it continues. `torchrun --nproc-per-node 2 -m sam_edge compress
    ...` shares the work.
    """
    from sam_edge import steps
    from sam_edge.bench.units import count
    from sam_edge.compress.distil import DistilOptions
    from sam_edge.compress.importance import ImportanceOptions
    from sam_edge.compress.slimming import SlimOptions
    from sam_edge.compress.widths import PruneOptions

    if method is Method.tinysam:
        from sam_edge.compress.embeddings import EmbedOptions
        from sam_edge.compress.full_stage import LossWeights
        from sam_edge.compress.hard_prompts import HardPromptOptions
        from sam_edge.compress.student import StudentOptions
        from sam_edge.compress.tinysam import TinySamOptions
        from sam_edge.distilling import DistilSources, distil

        if student is None:
            raise typer.BadParameter("--method tinysam needs --student: a known name, or a checkpoint.")
        with _progress("distil") as on_progress:
            result = distil(
                model,
                images,
                out,
                TinySamOptions(
                    StudentOptions(student, student_size, pretrained, decoder.value, projection.value),
                    LossWeights(alpha, beta, gamma, label_weight),
                    HardPromptOptions(prompts, box_share, max_rounds, accumulate, negatives),
                    epochs=8 if epochs is None else epochs,
                    batch_size=batch_size,
                    learning_rate=1e-3 if learning_rate is None else learning_rate,
                    ema_decay=ema_decay,
                    validations=validations,
                    workers=workers,
                    bf16=bf16,
                    seed=seed,
                ),
                DistilSources(embeddings, EmbedOptions(views=views), labels.value),
                device=device.value,
                strict=strict,
                on_progress=on_progress,
            )
        if os.environ.get("RANK", "0") == "0":
            best = result["best"]
            text = f"{out}: {count(result['parent']['parameters'])} -> {count(result['parameters'])} parameters"
            if best is not None:
                text += (
                    f"; on held-out pictures mIoU by point {best['miou_point']:.3f}, by box {best['miou_box']:.3f}, "
                    f"agreement with the teacher {best['agreement']:.3f}"
                )
            _report(as_json, result, text)
        return
    options = SlimOptions(
        schedule.value,
        PruneOptions(ratio, importance.value, ranking.value, normalization.value, round_to, seed),
        ImportanceOptions(importance_images, accumulation.value),
        DistilOptions(
            epochs,
            align_epochs,
            batch_size,
            DistilOptions.learning_rate if learning_rate is None else learning_rate,
            views,
            cache_gb,
            workers,
            bf16,
            seed,
        ),
    )
    with _progress("compress") as on_progress:
        result = steps.compress(
            model, images, out, options, device=device.value, strict=strict, on_progress=on_progress
        )
    if os.environ.get("RANK", "0") != "0":
        return
    parent = result["parent"]
    _report(
        as_json,
        result,
        f"{out}: {count(parent['parameters'])} -> {count(result['parameters'])} parameters, "
        f"{count(parent['encoder_macs'])} -> {count(result['encoder_macs'])} encoder MACs; embedding error "
        f"{result['embedding_error']:.3f} of the teacher's variance, masks agree with the teacher's to IoU "
        f"{result['mask_agreement']:.3f}",
    )


@app.command()
def embed(
    model: Annotated[str, typer.Argument(metavar="TEACHER", help=MODEL_HELP)],
    images: Images,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of embeddings; continued where it lies.")],
    views: Annotated[int, typer.Option(help=_EMBED("views"))] = 1,
    max_zoom: Annotated[float, typer.Option(help=_EMBED("max_zoom"))] = 2.0,
    precision: Annotated[StoredPrecision, typer.Option(help=_EMBED("precision"))] = StoredPrecision.int8,
    mask_points: Annotated[int, typer.Option(help=_EMBED("mask_points"))] = 16,
    max_masks: Annotated[int, typer.Option(help=_EMBED("max_masks"))] = 64,
    shard_views: Annotated[int, typer.Option(help=_EMBED("shard_views"))] = 64,
    batch_size: Annotated[int, typer.Option(help="Views encoded together.")] = 4,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Store a teacher's embeddings of photos in advance, for compress --method tinysam --embeddings DIR.

    Killed and started again with the same command, it continues. `torchrun --nproc-per-node 2 -m sam_edge embed ...`,
    or RANK and WORLD_SIZE set by hand on machines that share the folder, split the shards.
    """
    from sam_edge.bench.units import size
    from sam_edge.compress.embeddings import EmbedOptions
    from sam_edge.distilling import embed as embed_

    options = EmbedOptions(views, max_zoom, precision.value, mask_points, max_masks, shard_views, seed)
    with _progress("embed") as on_progress:
        result = embed_(
            model,
            images,
            out,
            options,
            batch_size=batch_size,
            device=device.value,
            strict=strict,
            on_progress=on_progress,
        )
    text = f"{out}: {result['written']} of {result['shards']} shards written"
    if result["complete"]:
        text += (
            f", complete: {size(result['stored_bytes'])}, {result['masks']} masks, "
            f"squared error {result['squared_error']:.1e} of the embeddings' variance"
        )
    _report(as_json, result, text)


@app.command()
def quantize(
    model: Model,
    images: Images,
    out: Out,
    weights: Annotated[int, typer.Option(help=_QUANTIZE("weights"))] = 8,
    activations: Annotated[int, typer.Option(help=_QUANTIZE("activations"))] = 8,
    metric: Annotated[Metric, typer.Option(help=_QUANTIZE("metric"))] = Metric.hessian,
    curvature: Annotated[Curvature, typer.Option(help=_QUANTIZE("curvature"))] = Curvature.fisher,
    twin: Annotated[bool, typer.Option(help=_QUANTIZE("twin"))] = True,
    per_layer: Annotated[bool, typer.Option("--per-layer", help=_QUANTIZE("per_layer"))] = False,
    calibration_images: Annotated[int, typer.Option(help="Pictures that scales are searched on.")] = 8,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of layer names to leave in float, as image_encoder.neck.* or *.products; repeat for more."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest drop allowed, as 0.01; the most sensitive layers go back to 8 bits or float for it."
        ),
    ] = None,
    gate_data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Labelled pictures whose mIoU --max-drop is about; without them it is agreement with the float masks.",
        ),
    ] = None,
    gate_images: Annotated[int, typer.Option(help="Pictures that --max-drop is measured on.")] = 16,
    runtime: Annotated[
        RuntimeName | None, typer.Option(help="Export the result and time it against its float parent on this runtime.")
    ] = None,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Turn a float checkpoint into an integer one, after training, with a few photos for calibration."""
    from sam_edge import steps
    from sam_edge.bench.units import size
    from sam_edge.quantize.ptq import QuantizeOptions

    defaults = QuantizeOptions()
    options = QuantizeOptions(
        weights=weights,
        activations=activations,
        metric=metric.value,
        curvature=curvature.value,
        twin=twin,
        per_layer=per_layer,
        skip=(*defaults.skip, *(skip or ())),
        seed=seed,
    )
    with _progress("quantize") as on_progress:
        result = steps.quantize(
            model,
            images,
            out,
            options,
            calibration_images=calibration_images,
            max_drop=max_drop,
            gate_data=gate_data,
            gate_images=gate_images,
            runtime=None if runtime is None else runtime.value,
            device=device.value,
            strict=strict,
            on_progress=on_progress,
        )
    said = (
        f"{out}: {result['layers']} layers, {weights}-bit weights, {activations}-bit activations, "
        f"{size(result['file_bytes'])}"
    )
    if gate := result["gate"]:
        given = f", {len(gate['raised'])} layers given back" if gate["raised"] else ""
        said += f"; {gate['measure']}: {gate['float_score']:.4f} -> {gate['score']:.4f}{given}"
    if speed := result["speed"]:
        ratio = speed["float_ms"] / speed["quantized_ms"]
        verdict = f"{ratio:.2f} x as fast as" if speed["faster"] else f"NOT faster ({ratio:.2f} x) than"
        said += f"; encoder {verdict} its float parent in {speed['runtime']}"
    _report(as_json, result, said)


@app.command("bench-quantize")
def bench_quantize(
    model: Model,
    images: Images,
    data: Annotated[str, typer.Option(metavar="DIR", help="Labelled pictures to evaluate on.")],
    bits: Annotated[list[int] | None, typer.Option(help="Bits of weights and activations; repeat for more.")] = None,
    metric: Annotated[list[Metric] | None, typer.Option(help="Metric to compare; repeat for more.")] = None,
    twin: Annotated[bool | None, typer.Option(help="Twin scales on or off only; both by default.")] = None,
    seeds: Annotated[int, typer.Option(help="Calibration seeds, each with pictures of its own.")] = 3,
    calibration_images: Annotated[int, typer.Option(help="Pictures that scales are searched on.")] = 8,
    split: Annotated[SplitName, typer.Option(help="Part of the data, by the hash of the file name.")] = SplitName.val,
    limit: Annotated[int | None, typer.Option(help="Evaluate on the first so many pictures.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="CSV to write, one line per run.")] = None,
    as_json: Json = False,
    device: OnDevice = Device.auto,
) -> None:
    """Compare bits, metrics and twin scales: mIoU lost against the float model, over calibration seeds."""
    from dataclasses import asdict

    from sam_edge.bench.quantization import rich_table, settings, write_csv
    from sam_edge.quantization_step import quantization_table

    metrics = [name.value for name in metric or tuple(Metric)]
    chosen = list(settings(bits or (8, 6), metrics, (True, False) if twin is None else (twin,)))
    with _progress("bench") as on_progress:
        parent, rows = quantization_table(
            model,
            images,
            data,
            chosen,
            range(seeds),
            calibration_images=calibration_images,
            split=split.value,
            limit=limit,
            device=device.value,
            on_progress=on_progress,
        )
    if out is not None:
        write_csv(parent, rows, out)
    if as_json:
        _print_json({"float": asdict(parent), "rows": [asdict(row) for row in rows]})
    else:
        _stdout().print(rich_table(parent, rows))


@app.command()
def calibrate(
    model: Model,
    images: Images,
    out: Out,
    photos: Annotated[int, typer.Option(help="Pictures to calibrate on, drawn by the seed.")] = 16,
    points_per_side: Annotated[int, typer.Option(help=_CALIBRATE("CalibrateOptions", "points_per_side"))] = 32,
    max_loss: Annotated[float, typer.Option(help=_CALIBRATE("CalibrateOptions", "max_loss"))] = 0.01,
    covered: Annotated[float | None, typer.Option(help=_CALIBRATE("CalibrateOptions", "covered"))] = None,
    survivors: Annotated[float | None, typer.Option(help=_CALIBRATE("CalibrateOptions", "survivors"))] = None,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Choose everything mode's tau, and thresholds where asked to, on photos without labels.

    Writes the same weights with a config that has them; exported models carry them on.
    """
    from sam_edge.everything_step import calibrate_everything
    from sam_edge.segment.calibrate import CalibrateOptions

    options = CalibrateOptions(points_per_side, max_loss, covered, survivors)
    with _progress("calibrate") as on_progress:
        result = calibrate_everything(
            model,
            images,
            out,
            options,
            photos=photos,
            seed=seed,
            device=device.value,
            strict=strict,
            on_progress=on_progress,
        )
    chosen, loss = result["thresholds"], result["loss"]
    _report(
        as_json,
        result,
        f"{out}: tau {chosen['tau']:.3g}, predicted IoU above {chosen['pred_iou']:.3g}, stability from "
        f"{chosen['stability']:.3g}; the hierarchical strategy skips {result['skipped']:.0%} of the points"
        + ("" if loss is None else f" and loses {loss:.4f} of agreement with the grid"),
    )


@app.command("export-onnx")
def export_onnx(
    model: Model,
    out: Out,
    precision: Annotated[
        Precision, typer.Option(help=doc("sam_edge.export.to_onnx", "OnnxOptions", "precision"))
    ] = Precision.fp32,
    dialect: Annotated[Dialect, typer.Option(help=doc("sam_edge.export.to_onnx", "OnnxOptions", "dialect"))] = (
        Dialect.cpu
    ),
    images: Images = DEFAULT_IMAGES,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.cpu,
) -> None:
    """Write encoder and decoder as ONNX, and check them against torch on real pictures (--images)."""
    from sam_edge import steps
    from sam_edge.bench.units import size
    from sam_edge.export.to_onnx import OnnxOptions

    options = OnnxOptions(precision.value, dialect.value)
    with _progress("export", indefinite=True):
        result = steps.to_onnx(model, images, out, options, seed=seed, device=device.value)
    files = ", ".join(f"{name} {size(value)}" for name, value in result["file_bytes"].items())
    _report(as_json, result, f"{out}: {files}; masks agree with torch to IoU {result['parity']['mask_iou']:.4f}")


@app.command("export-trt")
def export_trt(
    model: Model,
    out: Out,
    flavor: Annotated[Flavor, typer.Option(help=doc("sam_edge.export.to_tensorrt", "TrtOptions", "flavor"))] = (
        Flavor.rtx
    ),
    target: Annotated[
        list[str] | None, typer.Option(help=doc("sam_edge.export.to_tensorrt", "TrtOptions", "targets"))
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Precision of the graphs that a checkpoint is exported to on the way.")
    ] = Precision.fp16,
    max_batch: Annotated[int, typer.Option(help=doc("sam_edge.export.to_tensorrt", "TrtOptions", "max_batch"))] = 1,
    max_sets: Annotated[int, typer.Option(help=doc("sam_edge.export.to_tensorrt", "TrtOptions", "max_sets"))] = 64,
    max_points: Annotated[int, typer.Option(help=doc("sam_edge.export.to_tensorrt", "TrtOptions", "max_points"))] = 16,
    images: Images = DEFAULT_IMAGES,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.cpu,
) -> None:
    """Build TensorRT engines; `rtx` builds them for other machines' GPUs, on a machine without one."""
    from sam_edge import steps
    from sam_edge.bench.units import size
    from sam_edge.export.to_onnx import OnnxOptions
    from sam_edge.export.to_tensorrt import TrtOptions

    trt = TrtOptions(flavor.value, tuple(target or ()), max_batch, max_sets, max_points)
    onnx = OnnxOptions(precision.value, "tensorrt")
    with _progress("build", indefinite=True):
        result = steps.to_engines(model, images, out, onnx, trt, seed=seed, device=device.value)
    built = ", ".join(f"{engine['file']} {size(engine['engine_bytes'])}" for engine in result["engines"])
    _report(as_json, result, f"{out}: {built}")


@app.command()
def bench(
    model: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP)],
    runtime: Annotated[
        list[RuntimeName] | None,
        typer.Option(help="Runtime to time, repeat for more; checkpoints are exported for those that need graphs."),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--everything",
            help="Race everything mode instead: both strategies, --runtime's, and segment-anything's own generator.",
        ),
    ] = False,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Labelled pictures to race on, of their val split, without --image.")
    ] = DEFAULT_IMAGES,
    photos: Annotated[int, typer.Option(help="Pictures to race on, drawn by the seed.")] = 4,
    points_per_side: Annotated[int, typer.Option(help="Grid of everything mode.")] = 32,
    survivors: Annotated[
        float | None, typer.Option(help=_CALIBRATE("CalibrateOptions", "survivors") + " For the race alone.")
    ] = None,
    covered: Annotated[
        float | None, typer.Option(help=_CALIBRATE("CalibrateOptions", "covered") + " For the race alone.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to time on; a synthetic scene by default.")] = None,
    warmup: Annotated[int, typer.Option(help="Runs before any is counted.")] = 2,
    runs: Annotated[int, typer.Option(help="Counted runs of each measurement.")] = 10,
    memory: Annotated[bool, typer.Option(help="Measure the peak memory of a fresh process.")] = True,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for bench.json and a CSV.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Measure latency, memory and size; models and runtimes take turns, so that noise hits all alike."""
    from sam_edge import steps
    from sam_edge.bench.hardware import hardware, slug
    from sam_edge.bench.table import as_dict, rich_table, write_csv, write_json
    from sam_edge.data.image import read_image
    from sam_edge.files import atomic_folder

    picture = None if image is None else read_image(image)
    if everything:
        _race(
            model,
            [name.value for name in runtime or ()],
            out,
            as_json,
            data=data,
            image=picture,
            photos=photos,
            points_per_side=points_per_side,
            survivors=survivors,
            covered=covered,
            seed=seed,
            device=device.value,
        )
        return
    settings = {"models": model, "warmup": warmup, "runs": runs, "seed": seed, "device": device.value}
    with _progress("bench") as on_progress:
        rows = steps.bench(
            model,
            [name.value for name in runtime or ()],
            image=picture,
            memory=memory,
            warmup=warmup,
            runs=runs,
            seed=seed,
            device=device.value,
            on_progress=on_progress,
        )
    machine = hardware()
    if out is not None:
        with atomic_folder(out) as work:
            write_json(rows, machine, settings, work / "bench.json")
            write_csv(rows, work / f"{slug(machine)}.csv")
    if as_json:
        _print_json({"settings": settings, "hardware": machine, "rows": [as_dict(row) for row in rows]})
    else:
        _stdout().print(rich_table(rows))


def _race(model: list[str], runtimes: list[str], out: Path | None, as_json: bool, **options: Any) -> None:
    """`bench --everything`: the race of one model, its table and files."""
    from sam_edge.bench.everything import race_table, write_laps
    from sam_edge.bench.hardware import hardware, slug
    from sam_edge.errors import BenchError
    from sam_edge.everything_step import race_everything
    from sam_edge.files import atomic_folder

    if len(model) != 1:
        raise BenchError(f"the race of everything mode is between runtimes of one model, got {len(model)} models.")
    with _progress("race") as on_progress:
        result = race_everything(model[0], runtimes, **options, on_progress=on_progress)
    machine = hardware()
    result = {"hardware": machine, **result}
    if out is not None:
        with atomic_folder(out) as work:
            (work / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            write_laps(result["contenders"], work / f"{slug(machine)}.csv")
    if as_json:
        _print_json(result)
    else:
        _stdout().print(race_table(result["contenders"]))


@app.command("eval")
def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Labelled pictures: SA-1B layout, COCO instances json, or synthetic.")
    ],
    prompt: Annotated[Prompt, typer.Option(help="What each mask is prompted with.")] = Prompt.box,
    multimask: Annotated[
        bool, typer.Option("--multimask", help="Take the best of three masks by predicted IoU; report the oracle too.")
    ] = False,
    clicks: Annotated[
        int | None, typer.Option(help="Instead of --prompt: so many clicks, each where the mask is most wrong.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Instead of --prompt: everything mode, both strategies.")
    ] = False,
    points_per_side: Annotated[int, typer.Option(help="Grid of everything mode.")] = 32,
    split: Annotated[SplitName, typer.Option(help="Part of the data, by the hash of the file name.")] = SplitName.val,
    limit: Annotated[int | None, typer.Option(help="Evaluate on so many pictures, drawn by the seed.")] = None,
    runtime: AsRuntime = RuntimeName.auto,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Mean IoU on labelled pictures, by one point, one box, or a number of clicks per mask."""
    from sam_edge import steps

    if everything:
        from sam_edge.everything_step import evaluate_everything

        with _progress("eval") as on_progress:
            found = evaluate_everything(
                model,
                data,
                points_per_side=points_per_side,
                split=split.value,
                limit=limit,
                seed=seed,
                runtime=runtime.value,
                device=device.value,
                strict=strict,
                on_progress=on_progress,
            )
        for row in found["strategies"]:
            text = f"{row['strategy']}: everything-mode mIoU {row['miou']:.4f} over {row['masks']} masks, "
            text += f"{row['records']:.0f} masks found, {row['asked']:.0%} of the points asked, "
            text += f"agreement with the grid {row['agreement']:.3f}, {row['seconds']:.2f} s"
            if not as_json:
                typer.echo(text, err=True)
        if as_json:
            _print_json(found)
        return
    with _progress("eval") as on_progress:
        result = steps.evaluate(
            model,
            data,
            prompt=prompt.value,
            multimask=multimask,
            clicks=clicks,
            split=split.value,
            limit=limit,
            seed=seed,
            runtime=runtime.value,
            device=device.value,
            strict=strict,
            on_progress=on_progress,
        )
    if clicks is not None:
        after = ", ".join(f"{number}: {miou:.3f}" for number, miou in enumerate(result["miou"], 1))
        _report(as_json, result, f"mIoU over {result['masks']} masks after clicks {after}")
        return
    text = (
        f"{prompt.value} mIoU {result['miou']:.3f} over {result['masks']} masks, "
        f"{result['miou_per_image']:.3f} over {result['images']} images"
    )
    if result["miou_best_of_three"] is not None:
        text += f"; best of three {result['miou_best_of_three']:.3f}"
    if result["miou_ellipse"] is not None:
        text += f"; the ellipse in the box scores {result['miou_ellipse']:.3f}"
    _report(as_json, result, text)


@app.command()
def card(
    model: Model,
    data: Annotated[list[str], typer.Option(metavar="DIR", help="Labelled pictures, as for eval; repeat it.")],
    out: Out,
    notes: Annotated[Path | None, typer.Option(help="Markdown put first: what no measurement knows.")] = None,
    split: Annotated[SplitName, typer.Option(help="Part of the data, by the hash of the file name.")] = SplitName.val,
    limit: Annotated[int | None, typer.Option(help="Measure on so many pictures of each, drawn by the seed.")] = None,
    runtime: AsRuntime = RuntimeName.auto,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Write a model card: anatomy, lineage, accuracy, calibration and failures, measured."""
    from sam_edge.card import write_card

    with _progress("card") as on_progress:
        result = write_card(
            model,
            data,
            out,
            notes=notes,
            split=split.value,
            limit=limit,
            seed=seed,
            runtime=runtime.value,
            device=device.value,
            on_progress=on_progress,
        )
    _report(as_json, result, f"{out}: the card of {model} on {len(data)} data sets")


@app.command()
def segment(
    model: Model,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.")],
    out: Out,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y[,LABEL]", help="Point in pixels; label 1 (default) is object, 0 is not. Repeat."),
    ] = None,
    box: Annotated[str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Box in pixels.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Find all masks, by a grid of points.")] = False,
    strategy: Annotated[Strategy, typer.Option(help=_EVERYTHING("EverythingOptions", "strategy"))] = Strategy.grid,
    points_per_side: Annotated[int, typer.Option(help=_EVERYTHING("EverythingOptions", "points_per_side"))] = 32,
    pred_iou: Annotated[float | None, typer.Option(help=_EVERYTHING("EverythingOptions", "pred_iou"))] = None,
    stability: Annotated[float | None, typer.Option(help=_EVERYTHING("EverythingOptions", "stability"))] = None,
    tau: Annotated[float | None, typer.Option(help=_EVERYTHING("EverythingOptions", "tau"))] = None,
    crops: Annotated[int, typer.Option(help=_EVERYTHING("EverythingOptions", "crops"))] = 0,
    min_area: Annotated[int, typer.Option(help=_EVERYTHING("EverythingOptions", "min_area"))] = 0,
    max_memory_gb: Annotated[float, typer.Option(help=_EVERYTHING("EverythingOptions", "max_memory_gb"))] = 2.0,
    runtime: AsRuntime = RuntimeName.auto,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Segment a picture: an overlay, the masks as COCO annotations and as PNG files."""
    from sam_edge import segmenting

    prompts = segmenting.parse_prompts(point or [], box, everything)
    options = segmenting.EverythingOptions(
        strategy.value, points_per_side, pred_iou, stability, tau, crops, min_area, max_memory_gb
    )
    with _progress("segment", indefinite=not everything) as on_progress:
        result = segmenting.segment(
            model,
            image,
            out,
            prompts,
            options,
            runtime=runtime.value,
            device=device.value,
            seed=seed,
            on_progress=on_progress,
        )
    _report(as_json, result, f"{out}: {len(result['masks'])} masks, overlay.png, masks.json")


@app.command()
def run(
    out: Out,
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.toml]", help="Default: the packaged one.")] = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help=f"Instead of the recipe's. {IMAGES_HELP}")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Labelled pictures for mIoU, instead of the recipe's.")
    ] = None,
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of the recipe's seed.")] = None,
    device: OnDevice = Device.auto,
) -> None:
    """The whole lineage from one recipe: compress, quantize, export, build, measure, report.

    A step whose inputs are unchanged is skipped, so a killed run continues.
    """
    from sam_edge import pipeline

    overrides = {"images": images, "data": data, "seed": seed}
    loaded = pipeline.read_recipe(recipe, {key: value for key, value in overrides.items() if value is not None})
    result = pipeline.run(loaded, out, device=device.value, say=lambda text: typer.echo(text, err=True))
    if as_json:
        _print_json(result)
    else:
        typer.echo(Path(result["report"]).with_name("report.md").read_text(encoding="utf-8"))
        typer.echo(f"report: {result['report']}", err=True)


def main() -> None:
    """Run the command line; errors that a user can mend are one line and exit code 1."""
    try:
        app()
    except SamEdgeError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        _fail("interrupted.")


def _fail(text: str) -> None:
    print(f"sam-edge: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(1)


def _report(as_json: bool, result: dict[str, Any], text: str) -> None:
    if as_json:
        _print_json(result)
    else:
        typer.echo(text, err=True)


def _print_json(result: Any) -> None:
    print(json.dumps(result, default=str))


def _stdout() -> Any:
    from rich.console import Console

    return Console()


@contextmanager
def _progress(title: str, *, indefinite: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, shown where a person is watching."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [SpinnerColumn(), TextColumn(title), BarColumn(), TextColumn("{task.description}")]
    columns += [TimeElapsedColumn(), TimeRemainingColumn()]
    # of a torchrun's processes the first one speaks
    with Progress(*columns, console=Console(stderr=True), disable=os.environ.get("RANK", "0") != "0") as bar:
        task = bar.add_task("", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield on_progress


if __name__ == "__main__":
    main()
