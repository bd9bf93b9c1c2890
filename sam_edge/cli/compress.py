"""`compress`, and `embed` that prepares it."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sam_edge.cli.option_docs import doc
from sam_edge.cli.options import (
    MODEL_HELP,
    Accumulation,
    DecoderStart,
    Images,
    Importance,
    Json,
    Labels,
    Method,
    Model,
    Normalization,
    OnDevice,
    Out,
    Projection,
    Ranking,
    Schedule,
    Seed,
    StoredPrecision,
    Strict,
    claim,
)
from sam_edge.cli.output import is_first_process, progress, report

_SLIM = partial(doc, "sam_edge.compress.slimming", "SlimOptions")
_PRUNE = partial(doc, "sam_edge.compress.widths", "PruneOptions")
_IMPORTANCE = partial(doc, "sam_edge.compress.importance", "ImportanceOptions")
_DISTIL = partial(doc, "sam_edge.compress.distil", "DistilOptions")
_TINYSAM = partial(doc, "sam_edge.compress.tinysam", "TinySamOptions")
_WEIGHTS = partial(doc, "sam_edge.compress.full_stage", "LossWeights")
_HARD = partial(doc, "sam_edge.compress.hard_prompts", "HardPromptOptions")
_STUDENT = partial(doc, "sam_edge.compress.student", "StudentOptions")
_SOURCES = partial(doc, "sam_edge.commands.workshop.distil", "DistilSources")
_EMBED = partial(doc, "sam_edge.compress.embeddings", "EmbedOptions")

TINYSAM = "With --method tinysam"
"""Heading of the options that only this method has."""


def compress(
    model: Model,
    images: Images,
    out: Out,
    method: Annotated[
        Method,
        typer.Option(
            help="`slimsam` prunes MODEL and distils it back to accuracy; `tinysam` distils it into a --student."
        ),
    ] = "slimsam",
    schedule: Annotated[Schedule, typer.Option(help=_SLIM("schedule"))] = "alternate",
    ratio: Annotated[float, typer.Option(help=_PRUNE("ratio"))] = 0.5,
    importance: Annotated[Importance, typer.Option(help=_PRUNE("importance"))] = "disturbed-taylor",
    importance_images: Annotated[int, typer.Option(help=_IMPORTANCE("images"))] = 1000,
    accumulation: Annotated[Accumulation, typer.Option(help=_IMPORTANCE("accumulation"))] = "absolute",
    ranking: Annotated[Ranking, typer.Option(help=_PRUNE("ranking"))] = "global",
    normalization: Annotated[Normalization, typer.Option(help=_PRUNE("normalization"))] = "gaussian",
    round_to: Annotated[int, typer.Option(help=_PRUNE("round_to"))] = 0,
    epochs: Annotated[int | None, typer.Option(help=_DISTIL("epochs"))] = None,
    align_epochs: Annotated[int, typer.Option(help=_DISTIL("align_epochs"))] = 10,
    batch_size: Annotated[int, typer.Option(help=_DISTIL("batch_size"))] = 4,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate of Adam; by default 1e-4, with tinysam 1e-3.")
    ] = None,
    views: Annotated[int, typer.Option(help=_DISTIL("views"))] = 1,
    cache_gb: Annotated[float, typer.Option(help=_DISTIL("cache_gb"))] = 32.0,
    student: Annotated[str | None, typer.Option(help=_STUDENT("student"), rich_help_panel=TINYSAM)] = None,
    student_size: Annotated[int | None, typer.Option(help=_STUDENT("image_size"), rich_help_panel=TINYSAM)] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help=_STUDENT("pretrained"), rich_help_panel=TINYSAM)
    ] = False,
    decoder: Annotated[DecoderStart, typer.Option(help=_STUDENT("decoder"), rich_help_panel=TINYSAM)] = "trained",
    projection: Annotated[Projection, typer.Option(help=_STUDENT("projection"), rich_help_panel=TINYSAM)] = "folded",
    labels: Annotated[Labels, typer.Option(help=_SOURCES("labels"), rich_help_panel=TINYSAM)] = "auto",
    embeddings: Annotated[
        Path | None, typer.Option(metavar="DIR", help=_SOURCES("embeddings"), rich_help_panel=TINYSAM)
    ] = None,
    decoder_rate: Annotated[float, typer.Option(help=_TINYSAM("decoder_rate"), rich_help_panel=TINYSAM)] = 0.1,
    alpha: Annotated[float, typer.Option(help=_WEIGHTS("alpha"), rich_help_panel=TINYSAM)] = 1.0,
    beta: Annotated[float, typer.Option(help=_WEIGHTS("beta"), rich_help_panel=TINYSAM)] = 0.3,
    gamma: Annotated[float, typer.Option(help=_WEIGHTS("gamma"), rich_help_panel=TINYSAM)] = 0.01,
    label_weight: Annotated[float, typer.Option(help=_WEIGHTS("labels"), rich_help_panel=TINYSAM)] = 0.3,
    prompts: Annotated[int, typer.Option(help=_HARD("prompts"), rich_help_panel=TINYSAM)] = 64,
    box_share: Annotated[float, typer.Option(help=_HARD("box_share"), rich_help_panel=TINYSAM)] = 0.5,
    max_rounds: Annotated[int, typer.Option(help=_HARD("max_rounds"), rich_help_panel=TINYSAM)] = 9,
    accumulate: Annotated[
        bool, typer.Option("--accumulate", help=_HARD("accumulate"), rich_help_panel=TINYSAM)
    ] = False,
    negatives: Annotated[bool, typer.Option("--negatives", help=_HARD("negatives"), rich_help_panel=TINYSAM)] = False,
    ema_decay: Annotated[float, typer.Option(help=_TINYSAM("ema_decay"), rich_help_panel=TINYSAM)] = 0.99,
    validations: Annotated[int, typer.Option(help=_TINYSAM("validations"), rich_help_panel=TINYSAM)] = 8,
    workers: Annotated[int, typer.Option(help=_DISTIL("workers"))] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in bfloat16.")] = False,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Prune a model's image encoder and distil it back to accuracy, or distil it into a student, on your own photos.

    Killed and started again with the same command, it continues. `torchrun --nproc-per-node 2 -m sam_edge compress
    ...` shares the work.
    """
    from sam_edge.bench.units import count
    from sam_edge.commands.workshop.compress import compress as compress_
    from sam_edge.compress.distil import DistilOptions
    from sam_edge.compress.importance import ImportanceOptions
    from sam_edge.compress.slimming import SlimOptions
    from sam_edge.compress.widths import PruneOptions
    from sam_edge.data.unreadable import left_out

    if method == "tinysam":
        from sam_edge.commands.workshop.distil import DistilSources, distil
        from sam_edge.compress.embeddings import EmbedOptions
        from sam_edge.compress.full_stage import LossWeights
        from sam_edge.compress.hard_prompts import HardPromptOptions
        from sam_edge.compress.student import StudentOptions
        from sam_edge.compress.tinysam import TinySamOptions

        if student is None:
            raise typer.BadParameter("--method tinysam needs --student: a known name, or a checkpoint.")
        with progress("distil") as on_progress:
            result = distil(
                model,
                images,
                out,
                TinySamOptions(
                    StudentOptions(student, student_size, pretrained, decoder, projection),
                    LossWeights(alpha, beta, gamma, label_weight),
                    HardPromptOptions(prompts, box_share, max_rounds, accumulate, negatives),
                    epochs=8 if epochs is None else epochs,
                    batch_size=batch_size,
                    learning_rate=1e-3 if learning_rate is None else learning_rate,
                    decoder_rate=decoder_rate,
                    ema_decay=ema_decay,
                    validations=validations,
                    workers=workers,
                    bf16=bf16,
                    seed=seed,
                ),
                DistilSources(embeddings, EmbedOptions(views=views), labels),
                device=device,
                strict=strict,
                on_progress=on_progress,
            )
        if is_first_process():
            best = result["best"]
            text = f"{out}: {count(result['parent']['parameters'])} -> {count(result['parameters'])} parameters"
            if best is not None:
                text += (
                    f"; on held-out pictures mIoU by point {best['miou_point']:.3f}, by box {best['miou_box']:.3f}, "
                    f"agreement with the teacher {best['agreement']:.3f}"
                )
            report(as_json, result, text + left_out(result["unreadable"]))
        return
    options = SlimOptions(
        schedule,
        PruneOptions(ratio, importance, ranking, normalization, round_to, seed),
        ImportanceOptions(importance_images, accumulation),
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
    with progress("compress") as on_progress:
        result = compress_(model, images, out, options, device=device, strict=strict, on_progress=on_progress)
    if not is_first_process():
        return
    parent = result["parent"]
    report(
        as_json,
        result,
        f"{out}: {count(parent['parameters'])} -> {count(result['parameters'])} parameters, "
        f"{count(parent['encoder_macs'])} -> {count(result['encoder_macs'])} encoder MACs; embedding error "
        f"{result['embedding_error']:.3f} of the teacher's variance, masks agree with the teacher's to IoU "
        f"{result['mask_agreement']:.3f}" + left_out(result["unreadable"]),
    )


def embed(
    model: Annotated[str, typer.Argument(metavar="TEACHER", help=MODEL_HELP)],
    images: Images,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of embeddings; continued where it lies.", callback=claim),
    ],
    views: Annotated[int, typer.Option(help=_EMBED("views"))] = 1,
    max_zoom: Annotated[float, typer.Option(help=_EMBED("max_zoom"))] = 2.0,
    precision: Annotated[StoredPrecision, typer.Option(help=_EMBED("precision"))] = "int8",
    mask_points: Annotated[int, typer.Option(help=_EMBED("mask_points"))] = 16,
    max_masks: Annotated[int, typer.Option(help=_EMBED("max_masks"))] = 64,
    shard_views: Annotated[int, typer.Option(help=_EMBED("shard_views"))] = 64,
    batch_size: Annotated[int, typer.Option(help="Views encoded together.")] = 4,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Store a teacher's embeddings of photos in advance, for compress --method tinysam --embeddings DIR.

    Killed and started again with the same command, it continues. `torchrun --nproc-per-node 2 -m sam_edge embed ...`,
    or RANK and WORLD_SIZE set by hand on machines that share the folder, split the shards.
    """
    from sam_edge.bench.units import size
    from sam_edge.commands.workshop.distil import embed as embed_
    from sam_edge.compress.embeddings import EmbedOptions
    from sam_edge.data.unreadable import left_out

    options = EmbedOptions(views, max_zoom, precision, mask_points, max_masks, shard_views, seed)
    with progress("embed") as on_progress:
        result = embed_(
            model,
            images,
            out,
            options,
            batch_size=batch_size,
            device=device,
            strict=strict,
            on_progress=on_progress,
        )
    text = f"{out}: {result['written']} of {result['shards']} shards written"
    if result["complete"]:
        text += (
            f", complete: {size(result['stored_bytes'])}, {result['masks']} masks, "
            f"squared error {result['squared_error']:.1e} of the embeddings' variance"
        )
    report(as_json, result, text + left_out(result["unreadable"]))
