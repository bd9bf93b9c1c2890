"""`eval` and `card`."""

from pathlib import Path
from typing import Annotated

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
from sam_edge.cli.output import print_json, progress, report


def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Labelled pictures: SA-1B layout, COCO instances json, or synthetic.")
    ],
    prompt: Annotated[Prompt, typer.Option(help="What each mask is prompted with.")] = "box",
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
    ap: Annotated[
        bool, typer.Option("--ap", help="Instead of --prompt: COCO's mask AP over all of instances json, of boxes.")
    ] = False,
    detections: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --ap: a detector's boxes, as COCO results json; else the labels'."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --ap: masks as they are found, a line per picture; it goes on there."),
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
    """Mean IoU on labelled pictures, by one point, one box, or a number of clicks per mask."""
    from sam_edge.commands.device.evaluate import evaluate as evaluate_

    if ap:
        from sam_edge.commands.device.evaluate import evaluate_ap

        with progress("eval") as on_progress:
            found = evaluate_ap(
                model,
                Path(data),
                detections=detections,
                multimask=multimask,
                results=results,
                limit=limit,
                seed=seed,
                runtime=runtime.value,
                device=device,
                images_root=images_root,
                on_progress=on_progress,
            )
        text = f"mask AP {found['ap']:.3f} (50: {found['ap50']:.3f}, 75: {found['ap75']:.3f}; small "
        text += f"{found['ap_small']:.3f}, medium {found['ap_medium']:.3f}, large {found['ap_large']:.3f}) of "
        text += f"{found['masks']} boxes in {found['images']} pictures"
        report(as_json, found, text)
        return
    if everything:
        from sam_edge.commands.device.evaluate import evaluate_everything

        with progress("eval") as on_progress:
            found = evaluate_everything(
                model,
                data,
                points_per_side=points_per_side,
                split=split,
                limit=limit,
                seed=seed,
                runtime=runtime.value,
                device=device,
                strict=strict,
                images_root=images_root,
                on_progress=on_progress,
            )
        for row in found["strategies"]:
            text = f"{row['strategy']}: everything-mode mIoU {row['miou']:.4f} over {row['masks']} masks, "
            text += f"{row['records']:.0f} masks found, which match labels by {row['found_miou']:.3f}, "
            text += f"{row['asked']:.0%} of the points asked, agreement with the grid {row['agreement']:.3f}, "
            text += f"{row['seconds']:.2f} s"
            if not as_json:
                typer.echo(text, err=True)
        if as_json:
            print_json(found)
        return
    with progress("eval") as on_progress:
        result = evaluate_(
            model,
            data,
            prompt=prompt,
            multimask=multimask,
            clicks=clicks,
            split=split,
            limit=limit,
            seed=seed,
            runtime=runtime.value,
            device=device,
            strict=strict,
            images_root=images_root,
            on_progress=on_progress,
        )
    if clicks is not None:
        after = ", ".join(f"{number}: {miou:.3f}" for number, miou in enumerate(result["miou"], 1))
        report(as_json, result, f"mIoU over {result['masks']} masks after clicks {after}")
        return
    text = (
        f"{prompt} mIoU {result['miou']:.3f} over {result['masks']} masks, "
        f"{result['miou_per_image']:.3f} over {result['images']} images"
    )
    if result["miou_best_of_three"] is not None:
        text += f"; best of three {result['miou_best_of_three']:.3f}"
    if result["miou_ellipse"] is not None:
        text += f"; the ellipse in the box scores {result['miou_ellipse']:.3f}"
    report(as_json, result, text)


def card(
    model: Model,
    data: Annotated[list[str], typer.Option(metavar="DIR", help="Labelled pictures, as for eval; repeat it.")],
    out: Out,
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
            notes=notes,
            split=split,
            limit=limit,
            seed=seed,
            runtime=runtime.value,
            device=device,
            on_progress=on_progress,
        )
    report(as_json, result, f"{out}: the card of {model} on {len(data)} data sets")
