"""`eval` and `card`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sam_edge.cli.options import (
    AsRuntime,
    EvalSplit,
    ImagesRoot,
    Json,
    Model,
    OnDevice,
    Out,
    Prompt,
    RuntimeName,
    Seed,
    Strict,
)
from sam_edge.cli.output import is_first_process, progress, report


def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Labelled pictures: SA-1B layout, COCO instances json, or synthetic.")
    ],
    prompt: Annotated[Prompt, typer.Option(help="What each mask is prompted with.")] = "box",
    multimask: Annotated[
        bool,
        typer.Option(
            "--multimask",
            help="Take the best of three masks by predicted IoU; of clicks those of the first one.",
        ),
    ] = False,
    clicks: Annotated[
        int | None,
        typer.Option(
            help="Instead of --prompt: so many clicks, each deepest in what is wrong (9 in TinySAM's figure 4)."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Instead of --prompt: everything mode, both strategies; mIoU, recall.")
    ] = False,
    points_per_side: Annotated[int, typer.Option(help="Grid of everything mode.")] = 32,
    ap: Annotated[
        bool,
        typer.Option(
            "--ap",
            help="Instead of --prompt: COCO's or LVIS's mask AP over all of instances json, of boxes; of a folder, "
            "whose masks have no category, over its split.",
        ),
    ] = False,
    detections: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --ap: a detector's boxes, as COCO results json; else the labels'."),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Instead of labels: how far masks are those of this MODEL, on any pictures of --data."
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What is found, a line per picture, as it is found; a later run goes on there."
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Only the K-th part of N, with --results, into a file beside it; a run without --shard does "
            "the others' rest and sums up. Under torchrun each process takes a part by itself.",
        ),
    ] = None,
    split: EvalSplit = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate on so many pictures, drawn by the seed.")] = None,
    runtime: AsRuntime = RuntimeName.auto,
    images_root: ImagesRoot = None,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Mean IoU on labelled pictures, by one point, one box, or a number of clicks per mask; or another protocol."""
    from sam_edge.commands.device import evaluate as commands
    from sam_edge.errors import DataError

    asked = {"--clicks": clicks is not None, "--everything": everything, "--ap": ap, "--parent": parent is not None}
    protocols = [name for name, given in asked.items() if given]
    if len(protocols) > 1:
        raise DataError(f"{' and '.join(protocols)} are different protocols: give one.")
    if detections is not None and not ap:
        raise DataError("--detections are boxes that an AP is taken of: give --ap, too.")
    pictures = commands.Pictures(data, split, limit, seed, strict, images_root)
    with progress("eval") as on_progress:
        run = commands.Run(runtime.value, device, results, shard, on_progress)
        if ap:
            found = commands.evaluate_ap(model, pictures, run, detections=detections, multimask=multimask)
        elif parent is not None:
            found = commands.evaluate_against(model, parent, pictures, run)
        elif everything:
            found = commands.evaluate_everything(model, pictures, run, points_per_side=points_per_side)
        else:
            found = commands.evaluate(model, pictures, run, prompt=prompt, multimask=multimask, clicks=clicks)
    if is_first_process():
        report(as_json, found, _in_words(found))


def _in_words(found: dict[str, Any]) -> str:
    """A result for people; what it is of is told by what it holds."""
    if "ap" in found:
        text = f"{found['style'].upper()} mask AP {found['ap']:.3f} (50: {found['ap50']:.3f}, 75: {found['ap75']:.3f}; "
        text += f"small {found['ap_small']:.3f}, medium {found['ap_medium']:.3f}, large {found['ap_large']:.3f}) of "
        text += f"{found['masks']} boxes in {found['images']} pictures"
    elif "parent" in found:
        text = f"masks agree with {found['parent']}'s by {found['point']:.4f} for points "
        text += f"({found['point_parents_choice']:.4f} where it chooses among the three)"
        text += f", {found['box']:.4f} for boxes" if found["box"] is not None else ""
        text += f" ({found['prompts']} prompts in {found['images']} pictures); least on {found['worst'][0][0]}"
    elif "strategies" in found:
        text = "\n".join([*map(_strategy, found["strategies"]), *map(_ahead, found["compared"])])
    elif "clicks" in found:
        after = ", ".join(f"{number}: {miou:.3f}" for number, miou in enumerate(found["miou"], 1))
        text = f"mIoU over {found['masks']} masks after clicks {after}"
    else:
        text = f"{found['prompt']} mIoU {found['miou']:.3f} over {found['masks']} masks, "
        text += f"{found['miou_per_image']:.3f} over {found['images']} images"
        if found["miou_best_of_three"] is not None:
            text += f"; best of three {found['miou_best_of_three']:.3f}"
        if found["miou_ellipse"] is not None:
            text += f"; the ellipse in the box scores {found['miou_ellipse']:.3f}"
    return text + (f"; {found['left']} pictures are left to other shards" if found.get("left") else "")


def _strategy(row: dict[str, Any]) -> str:
    return (
        f"{row['strategy']}: everything-mode mIoU {row['miou']:.4f} over {row['masks']} masks, recall at IoU 0.5 "
        f"{row['recall50']:.3f}, AR@100 {row['ar100']:.3f}, AR@1000 {row['ar1000']:.3f}; {row['records']:.0f} masks "
        f"found, of which {row['matching']:.0%} match a label; {row['only_whole']:.0%} of pictures told apart nothing; "
        f"{row['asked']:.0%} of the points asked, agreement with the grid {row['agreement']:.3f}, "
        f"{row['seconds']:.2f} s"
    )


def _ahead(row: dict[str, Any]) -> str:
    interval = f"{row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
    return f"{row['mine']} less {row['other']}, {row['measure']}: {interval}"


def card(
    model: Model,
    data: Annotated[list[str], typer.Option(metavar="DIR", help="Labelled pictures, as for eval; repeat it.")],
    out: Out,
    shown: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Labelled pictures that may be shown by licence; else --data. Repeat it."),
    ] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown put first: what no measurement knows.")] = None,
    split: EvalSplit = "val",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure on so many pictures of each, drawn by the seed.")
    ] = None,
    runtime: AsRuntime = RuntimeName.auto,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Write a model card: anatomy, lineage, accuracy, calibration and failures, measured."""
    from sam_edge.commands.device.card import write_card

    with progress("card") as on_progress:
        result = write_card(
            model,
            data,
            out,
            shown=shown or (),
            notes=notes,
            split=split,
            limit=limit,
            seed=seed,
            runtime=runtime.value,
            device=device,
            on_progress=on_progress,
        )
    report(as_json, result, f"{out}: the card of {model} on {len(data)} data sets")
