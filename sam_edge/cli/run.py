"""`demo` and `sample`, to begin with; `models`, `runtimes` and `doctor`, what is here; `run`, the whole lineage."""

from pathlib import Path
from typing import Annotated

import typer

from sam_edge.cli.options import IMAGES_HELP, Json, OnDevice, Out
from sam_edge.cli.output import plural, print_json, progress, report, stdout
from sam_edge.errors import SamEdgeError


def models(as_json: Json = False) -> None:
    """List the known models: size, cost, where the weights come from and under which licence."""
    from rich.table import Table

    from sam_edge.bench.units import count
    from sam_edge.commands.device.models import models as models_

    found = models_()
    if as_json:
        print_json({"models": found})
        return
    table = Table(title="Known models", caption="MACs of the image encoder, without / with attention products")
    for heading in ("name", "parameters", "MACs", "licence", "source"):
        table.add_column(heading, overflow="fold")
    for row in found:
        macs = f"{count(row['encoder_macs'])} / {count(row['encoder_macs_with_attention'])}"
        table.add_row(row["name"], count(row["parameters"]), macs, row["licence"], row["source"])
    stdout().print(table)


def runtimes(as_json: Json = False) -> None:
    """List the libraries that run models: which are here, in what they compute here, and how to get the others."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from sam_edge.runtimes.listing import listed
    from sam_edge.runtimes.processor import features

    found = listed()
    if as_json:
        print_json({"processor": features(), "runtimes": [asdict(row) for row in found]})
        return
    table = Table(title="Runtimes", caption=f"This processor has {', '.join(features()) or 'nothing that it tells'}.")
    for heading in ("runtime", "version", "computes in", "to do"):
        table.add_column(heading, overflow="fold")
    for row in found:
        table.add_row(row.name, row.version or "-", row.computes, escape(row.remedy))
    stdout().print(table)


def sample(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the photo goes.")] = Path("photo.jpg"),
    as_json: Json = False,
) -> None:
    """Write a photo to try things on: an espresso, by Rachel Michetti (CC0)."""
    from sam_edge.files import atomic_file
    from sam_edge.segment.known import shipped_folder

    if out.exists():
        raise SamEdgeError(f"{out} is there already: choose another --out.")
    with atomic_file(out) as part:
        part.write_bytes((shipped_folder("sample") / "photo.jpg").read_bytes())
    report(as_json, {"out": str(out)}, f"{out}: 600 x 400 pixels")


def doctor(as_json: Json = False) -> None:
    """Look over this installation: what is here, what is wrong with it, and a line of advice for each."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from sam_edge.commands.device.doctor import examine

    with progress("doctor") as on_progress:
        found = examine(on_progress)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in found]})
    else:
        table = Table(title="sam-edge doctor")
        for heading in ("", "", "found", "advice"):
            table.add_column(heading, overflow="fold")
        colours = {"well": "green", "note": "yellow", "wrong": "red"}
        for finding in found:
            state = f"[{colours[finding.state]}]{finding.state}[/]"
            table.add_row(state, finding.about, escape(finding.found), escape(finding.advice))
        stdout().print(table)
    wrong = [finding for finding in found if finding.state == "wrong"]
    if wrong:
        raise SamEdgeError(f"{len(wrong)} of {len(found)} are wrong, first {wrong[0].about}: {wrong[0].advice}")


def demo(
    out: Out = Path("sam-edge-demo"),
    as_json: Json = False,
) -> None:
    """Segment the sample photo by a point, by a box, and everything in it; without torch, and without a download."""
    from sam_edge.commands.device.demo import NEXT
    from sam_edge.commands.device.demo import demo as demo_

    with progress("demo") as on_progress:
        result = demo_(out, on_progress)
    lines = [
        f"{step['asked']}: {plural(step['masks'], 'mask')} in {step['seconds']:.1f} s, {step['overlay']}"
        for step in result["steps"]
    ]
    report(as_json, result, "\n".join((*lines, "", "Where to go next:", *(f"  {line}" for line in NEXT))))


def run(
    out: Out,
    recipe: Annotated[Path | None, typer.Argument(metavar="[RECIPE.toml]", help="Default: the packaged one.")] = None,
    images: Annotated[str | None, typer.Option(metavar="DIR", help=f"Instead of the recipe's. {IMAGES_HELP}")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Labelled pictures for mIoU, instead of the recipe's.")
    ] = None,
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of the recipe's seed.")] = None,
    device: OnDevice = "auto",
) -> None:
    """The whole lineage from one recipe: compress, quantize, export, build, measure, report.

    A step whose inputs are unchanged is skipped, so a killed run continues.
    """
    from sam_edge.commands.workshop.recipe import read_recipe
    from sam_edge.commands.workshop.run import run as run_

    overrides = {"images": images, "data": data, "seed": seed}
    loaded = read_recipe(recipe, {key: value for key, value in overrides.items() if value is not None})
    with progress("run") as on_progress:
        result = run_(loaded, out, device=device, say=lambda text: typer.echo(text, err=True), on_progress=on_progress)
    if as_json:
        print_json(result)
    else:
        typer.echo(result["summary"])
        typer.echo(f"report, with all numbers and pictures: {result['report']}, and beside it report.md", err=True)
