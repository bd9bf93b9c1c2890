"""`sam-edge card`: what a model is, how it was made, and how good it is, measured, as a page beside its weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sam_edge.bench.provenance import provenance, used_sha256
from sam_edge.commands.common import OnProgress, counting
from sam_edge.commands.device.bench import cost_of
from sam_edge.data import Dataset, LabelledImage, open_some
from sam_edge.data.split import Split
from sam_edge.errors import DataError
from sam_edge.evaluate.clicks import evaluate_clicks
from sam_edge.evaluate.miou import Asked, evaluate_prompts
from sam_edge.evaluate.pictured import Example, Failure, examples, worst_masks
from sam_edge.files import atomic_folder, check_target
from sam_edge.runtimes.open import open_for_many
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.cost import Cost
from sam_edge.segment.overlay import overlay
from sam_edge.segment.runtime import Runtime

CLICKS = 5
SHOWN_CLICKS = (1, 3, 5)
EXAMPLES, FAILURES = 6, 8
TILE_PX = 224
Picture = UInt8[np.ndarray, "h w 3"]


def write_card(
    spec: str,
    data: Sequence[str],
    out: Path,
    *,
    shown: Sequence[str] = (),
    notes: Path | None = None,
    split: Split = "val",
    limit: int | None = None,
    seed: int = 0,
    runtime: str = "auto",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure MODEL on each of `data` and write `CARD.md`, `card.json`, `examples.png` and `failures.png`.

    `shown` are labelled pictures whose licences allow to show them, of `data` where it is empty. `notes` is a Markdown
    file put first: what a measurement cannot know, such as licences.

    Raises:
        DataError: unreadable notes.
    """
    check_target(out)
    first = f"# {spec}" if notes is None else _read(notes)
    opened = open_for_many(spec, runtime, device)
    pictures = [open_some(source, split, limit=limit, seed=seed) for source in data]
    measured = [
        {"data": source, **_measure(opened, some, on_progress)} for source, some in zip(data, pictures, strict=True)
    ]
    to_show = [open_some(source, split, limit=limit, seed=seed) for source in shown] or pictures
    shown_examples = [e for some in to_show for e in examples(opened, some, -(-EXAMPLES // len(to_show)))]
    failures = [failure for some in to_show for failure in worst_masks(opened, some, -(-FAILURES // len(to_show)))]
    page = _page(first, spec, opened.config, cost_of(opened), measured, limit)
    page += _pictured(shown or data, bool(shown_examples), bool(failures))
    settings = {"split": split, "limit": limit, "seed": seed, "runtime": opened.name, "device": device}
    seen = {row["data"]: row["box"]["data_sha256"] for row in measured}
    told = {"model": spec, "provenance": provenance({spec: used_sha256(spec)}, seen)}
    with atomic_folder(out) as work:
        (work / "CARD.md").write_text(page)
        (work / "card.json").write_text(json.dumps({**told, **settings, "measured": measured}, indent=1))
        if shown_examples:
            Image.fromarray(_sheet([_found(example) for example in shown_examples])).save(work / "examples.png")
        if failures:
            Image.fromarray(_sheet([_wrong(failure) for failure in failures])).save(work / "failures.png")
    return {**told, **settings, "out": str(out), "measured": measured}


def _read(notes: Path) -> str:
    try:
        return notes.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{notes} cannot be read as text: {error}.") from error


def _measure(opened: Runtime, some: Dataset[LabelledImage], on_progress: OnProgress | None) -> dict[str, Any]:
    asked = Asked("box"), Asked("point"), Asked("point", multimask=True)
    on_image = counting(2 * len(some), "mIoU", on_progress)
    box, point, point_multimask = evaluate_prompts(opened, some, asked, on_image=on_image)
    return {
        "box": box.as_dict(),
        "point": point.as_dict(),
        "point_multimask": point_multimask.as_dict(),
        "clicks": list(evaluate_clicks(opened, some, clicks=CLICKS, on_image=on_image).miou),
    }


def _page(
    first: str,
    spec: str,
    config: ModelConfig,
    size: Cost | None,
    measured: list[dict[str, Any]],
    limit: int | None,
) -> str:
    sources = " ".join(f"--data {Path(row['data']).name}" for row in measured)
    parts = [
        first,
        "## Anatomy",
        f"{_encoder(config)}, image size {config.image_size} px, mask logits "
        f"{config.mask_size} x {config.mask_size}{_costs(size)}.",
        "## How it was made",
        _table(("step", "data", "steps", "seed", "hours", "hardware", "date"), [_made(s) for s in config.lineage])
        if config.lineage
        else "No lineage is recorded.",
        "## How good it is",
        f"Mean IoU on the val split (by the hash of the file name), by `sam-edge card {spec} {sources}`"
        + (f", {limit} pictures of each" if limit else "")
        + ". The ellipse is the one inscribed in the box: a model below it has learned nothing from the picture.",
        _table(
            (
                "data",
                "pictures / masks",
                "box",
                "ellipse",
                "1 point, single mask",
                "by predicted IoU",
                "best of three",
                *(f"{count} clicks" for count in SHOWN_CLICKS[1:]),
            ),
            [_scores(row) for row in measured],
        ),
        "## Calibration of the predicted IoU",
        "Box prompts, by tenths of the predicted IoU: mean predicted / mean actual IoU (masks).",
        _calibration(measured),
    ]
    return "\n\n".join(parts) + "\n"


def _pictured(sources: Sequence[str], found: bool, wrong: bool) -> str:
    names = " and ".join(Path(source).name for source in sources)
    text = ""
    if found:
        text += (
            f"\n## What it finds\n\nThe first pictures of {names}. Above, the largest labelled things, each by a point "
            "alone; below, everything mode.\n\n![By points, and everything](examples.png)\n"
        )
    if wrong:
        text += (
            "\n## Where it fails\n\nThe worst masks by a box, of at least 1 % of their picture, one each: wanted "
            "above, predicted below.\n\n![The worst masks](failures.png)\n"
        )
    return text


def _costs(size: Cost | None) -> str:
    if size is None:
        return ""
    return (
        f"; {size.parameters / 1e6:.2f} M parameters ({size.encoder_parameters / 1e6:.2f} M in the encoder), "
        f"{size.encoder_macs_with_attention / 1e9:.2f} GMAC per picture and {size.decoder_macs / 1e9:.3f} GMAC "
        "per prompt"
    )


def _made(step: dict[str, Any]) -> tuple[str, ...]:
    settings = step.get("settings") or {}
    data = step.get("data") or ""
    if isinstance(data, list):
        data = ", ".join(part if isinstance(part, str) else _weighted(part) for part in data)
    shares = " + ".join(f"{share:g} {name}" for name, share in settings.get("shares", {}).items())
    seconds = step.get("seconds")
    return (
        " of ".join(part for part in (str(step.get("step", "")), shares) if part),
        str(data),
        str((settings.get("loop") or {}).get("steps", "")),
        str(step.get("seed", "")),
        "" if seconds is None else f"{seconds / 3600:.2f}",
        str(step.get("hardware", "")),
        str(step.get("date", ""))[:10],
    )


def _weighted(source: dict[str, Any]) -> str:
    size = f"{source['images']} pictures" if "images" in source else f"{source['shards']} shards"
    return f"{source['name']} ({size}, weight {source['weight']:g})"


def _scores(row: dict[str, Any]) -> tuple[str, ...]:
    box, multi = row["box"], row["point_multimask"]
    scores = (
        box["miou"],
        box["miou_ellipse"],
        row["point"]["miou"],
        multi["miou"],
        multi["miou_best_of_three"],
        *(row["clicks"][count - 1] for count in SHOWN_CLICKS[1:]),
    )
    return Path(row["data"]).name, f"{box['images']} / {box['masks']}", *(f"{score:.3f}" for score in scores)


def _calibration(measured: list[dict[str, Any]]) -> str:
    rows = []
    for row in measured:
        cells = [""] * 10
        for part in row["box"]["reliability"]:
            tenth = min(max(int(part["predicted"] * 10), 0), 9)
            cells[tenth] = f"{part['predicted']:.2f} / {part['actual']:.2f} ({part['masks']})"
        rows.append((Path(row["data"]).name, *cells, f"{row['box']['iou_error']:.3f}"))
    return _table(("data", *(f"{tenth / 10:.1f}" for tenth in range(10)), "mean error"), rows)


def _encoder(config: ModelConfig) -> str:
    if config.backbone is not None:
        strides = ", ".join(map(str, config.backbone.strides))
        return f"{config.backbone.name} of timm and a pyramid of strides {strides}"
    return f"{config.arch}, {len(config.blocks) or len(config.stages)} {'blocks' if config.blocks else 'stages'}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _found(example: Example) -> tuple[Picture, Picture]:
    """By points, and everything."""
    points = [(x, y, 1) for x, y in example.points]
    image = example.sample.image
    return overlay(image, example.by_points, points=points), overlay(image, example.everything)


def _wrong(failure: Failure) -> tuple[Picture, Picture]:
    """Wanted, and predicted."""
    x, y, width, height = failure.annotation.bbox_xywh
    box = [(x, y, x + width, y + height)]
    image = failure.sample.image
    return overlay(image, [failure.annotation.mask()], boxes=box), overlay(image, [failure.mask], boxes=box)


def _sheet(pairs: Sequence[tuple[Picture, Picture]]) -> Picture:
    """The first of each pair above the second, one column per pair."""
    return np.hstack([np.vstack([_tile(picture) for picture in pair]) for pair in pairs])


def _tile(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "t t 3"]:
    scale = TILE_PX / max(picture.shape[:2])
    width, height = (max(round(side * scale), 1) for side in picture.shape[1::-1])
    tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    tile[:height, :width] = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return tile
