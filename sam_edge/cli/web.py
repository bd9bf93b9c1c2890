"""`export-web`, a page that segments photos in the browser, and `serve`, which shows it on this machine."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from sam_edge.cli.options import DEFAULT_IMAGES, MODEL_HELP, Images, Json, OnDevice, Out, Seed
from sam_edge.cli.output import print_json, progress, report

WebPrecision = Literal["int8", "fp32"]
"""Precision of graphs for the page."""


def export_web(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help=f"{MODEL_HELP} Several can be compared side by side.")
    ],
    out: Out,
    precision: Annotated[
        WebPrecision,
        typer.Option(
            help="Of a checkpoint that is exported on the way, and quantized first for int8; exported folders are "
            "taken as they are."
        ),
    ] = "int8",
    images: Images = DEFAULT_IMAGES,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "cpu",
) -> None:
    """Write a static site that segments photos in the browser: on any server, and without one behind it.

    An exported folder, or `nano`, needs no torch here. Show the site with `sam-edge serve`.
    """
    from dataclasses import asdict

    from sam_edge.bench.units import size
    from sam_edge.files import check_target
    from sam_edge.web.site import graphs_at_hand, name_of, write_site

    check_target(out)
    with tempfile.TemporaryDirectory() as scratch, progress("export") as on_progress:
        folders = []
        for number, spec in enumerate(models):
            on_progress(number, len(models), name_of(spec))
            folder = graphs_at_hand(spec, precision)
            if folder is None:
                from sam_edge.commands.workshop.export import to_graphs

                folder = Path(scratch) / str(number)
                to_graphs(spec, images, folder, precision, seed=seed, device=device)
            folders.append((name_of(spec), folder))
        site = write_site(folders, out)
    sizes = ", ".join(f"{name} {size(value)}" for name, value in site.file_bytes.items())
    report(as_json, {**asdict(site), "out": str(out)}, f"{out}: {sizes}; show it with `sam-edge serve {out}`")


def serve(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="A folder that `export-web` wrote.")],
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    as_json: Json = False,
) -> None:
    """Serve a site to this machine alone, with the headers that threads need, until it is interrupted."""
    from sam_edge.web.serve import HOST, server

    with server(site, port) as serving:
        url = f"http://{HOST}:{serving.server_port}/"
        if as_json:
            print_json({"url": url})
        else:
            typer.echo(f"{url} (stop with Ctrl+C)", err=True)
        # the way to end it
        with suppress(KeyboardInterrupt):
            serving.serve_forever()
