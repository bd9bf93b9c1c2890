"""`segment`, and `calibrate` that sets its thresholds."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sam_edge.cli.option_docs import doc
from sam_edge.cli.options import (
    AsRuntime,
    Coverage,
    Images,
    Json,
    MaskFormatName,
    Model,
    OnDevice,
    Out,
    RuntimeName,
    Seed,
    Strategy,
    Strict,
)
from sam_edge.cli.output import plural, progress, report
from sam_edge.errors import SamEdgeError

_EVERYTHING = partial(doc, "sam_edge.commands.device.segment", "EverythingOptions")
_CALIBRATE = partial(doc, "sam_edge.segment.calibrate", "CalibrateOptions")


def segment(
    model: Model,
    image: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|DIR|GLOB...", help="A picture; or several, folders of them, and patterns."),
    ],
    out: Out,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y[,LABEL]", help="Point in pixels; label 1 (default) is object, 0 is not. Repeat."),
    ] = None,
    box: Annotated[str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Box in pixels.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Find all masks, by a grid of points.")] = False,
    strategy: Annotated[Strategy, typer.Option(help=_EVERYTHING("strategy"))] = "grid",
    points_per_side: Annotated[int, typer.Option(help=_EVERYTHING("points_per_side"))] = 32,
    pred_iou: Annotated[float | None, typer.Option(help=_EVERYTHING("pred_iou"))] = None,
    stability: Annotated[float | None, typer.Option(help=_EVERYTHING("stability"))] = None,
    tau: Annotated[float | None, typer.Option(help=_EVERYTHING("tau"))] = None,
    coverage: Annotated[Coverage | None, typer.Option(help=_EVERYTHING("coverage"))] = None,
    nested: Annotated[float | None, typer.Option(help=_EVERYTHING("nested"))] = None,
    crops: Annotated[int, typer.Option(help=_EVERYTHING("crops"))] = 0,
    min_area: Annotated[int, typer.Option(help=_EVERYTHING("min_area"))] = 0,
    max_memory_gb: Annotated[float, typer.Option(help=_EVERYTHING("max_memory_gb"))] = 2.0,
    fast_read: Annotated[
        bool,
        typer.Option("--fast-read", help="Decode of a JPEG no more than the model sees; masks may differ a bit."),
    ] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Of many pictures write each one's overlay and masks as PNG, too.")
    ] = False,
    mask_format: Annotated[
        list[MaskFormatName] | None,
        typer.Option("--format", help="Masks as another tool's files, too, beside COCO's masks.json. Repeat."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Open the overlay of a single picture in this machine's viewer.")
    ] = False,
    runtime: AsRuntime = RuntimeName.auto,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Segment a picture: an overlay, the masks as COCO annotations and as PNG files.

    Of many pictures all masks go into one COCO file, masks.json; killed and started again with the same command, it
    continues. A picture that cannot be read is counted and left out.
    """
    from sam_edge.commands.device import segment as command

    prompts = command.parse_prompts(point or [], box, everything)
    formats: list[Any] = [form.value for form in mask_format or ()]
    options = command.EverythingOptions(
        strategy, points_per_side, pred_iou, stability, tau, coverage, nested, crops, min_area, max_memory_gb
    )
    from sam_edge.commands.device.prelabel import names_one_picture, prelabel

    if not names_one_picture(image):
        if show:
            raise typer.BadParameter(
                "is for a single picture; of many, --pictures writes overlays.", param_hint="--show"
            )
        with progress("segment") as on_progress:
            result = prelabel(
                model,
                image,
                out,
                prompts,
                options,
                runtime=runtime.value,
                device=device,
                fast_read=fast_read,
                pictures=pictures,
                formats=formats,
                strict=strict,
                seed=seed,
                on_progress=on_progress,
            )
        text = f"{out}: {result['masks']} masks of {result['pictures']} pictures, masks.json"
        if result["skipped"]:
            text += f"; {len(result['skipped'])} skipped, the first: {result['skipped'][0]['reason']}"
        report(as_json, result, text)
        return
    with progress("segment") as on_progress:
        result = command.segment(
            model,
            Path(image[0]),
            out,
            prompts,
            options,
            runtime=runtime.value,
            device=device,
            fast_read=fast_read,
            formats=formats,
            seed=seed,
            on_progress=on_progress,
        )
    report(as_json, result, f"{out}: {plural(len(result['masks']), 'mask')}, overlay.png, masks.json")
    if show and typer.launch(str(out / "overlay.png")) != 0:
        raise SamEdgeError(f"no viewer of pictures was found here: open {out / 'overlay.png'} by hand.")


def calibrate(
    model: Model,
    images: Images,
    out: Out,
    photos: Annotated[int, typer.Option(help="Pictures to calibrate on, drawn by the seed.")] = 16,
    points_per_side: Annotated[int, typer.Option(help=_CALIBRATE("points_per_side"))] = 32,
    max_loss: Annotated[float, typer.Option(help=_CALIBRATE("max_loss"))] = 0.01,
    covered: Annotated[float | None, typer.Option(help=_CALIBRATE("covered"))] = None,
    survivors: Annotated[float | None, typer.Option(help=_CALIBRATE("survivors"))] = None,
    nested: Annotated[float | None, typer.Option(help=_CALIBRATE("nested"))] = None,
    coverage: Annotated[Coverage, typer.Option(help=_CALIBRATE("coverage"))] = "contrast",
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Choose everything mode's tau, and thresholds where asked to, on photos without labels.

    Writes the same weights with a config that has them; exported models carry them on.
    """
    from sam_edge.commands.workshop.calibrate import calibrate_everything
    from sam_edge.segment.calibrate import CalibrateOptions

    options = CalibrateOptions(points_per_side, max_loss, covered, survivors, nested, coverage)
    with progress("calibrate") as on_progress:
        result = calibrate_everything(
            model,
            images,
            out,
            options,
            photos=photos,
            seed=seed,
            device=device,
            strict=strict,
            on_progress=on_progress,
        )
    chosen, loss = result["thresholds"], result["loss"]
    report(
        as_json,
        result,
        f"{out}: tau {chosen['tau']:.3g}, predicted IoU above {chosen['pred_iou']:.3g}, stability from "
        f"{chosen['stability']:.3g}; the hierarchical strategy skips {result['skipped']:.0%} of the points"
        + ("" if loss is None else f" and loses {loss:.4f} of agreement with the grid"),
    )
