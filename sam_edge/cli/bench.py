"""`bench`, of calls and of everything mode."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sam_edge.cli.option_docs import doc
from sam_edge.cli.options import DEFAULT_IMAGES, MODEL_HELP, Json, OnDevice, RuntimeName, Seed, claim
from sam_edge.cli.output import print_json, progress, stdout

SINGLE_STREAM_SECONDS = 60.0
"""Shortest run of MLPerf Inference's SingleStream scenario, which reports the 90th percentile."""
_CALIBRATE = partial(doc, "sam_edge.segment.calibrate", "CalibrateOptions")


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
    survivors: Annotated[float | None, typer.Option(help=_CALIBRATE("survivors") + " For the race alone.")] = None,
    covered: Annotated[float | None, typer.Option(help=_CALIBRATE("covered") + " For the race alone.")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to time on; a synthetic scene by default.")] = None,
    warmup: Annotated[int, typer.Option(help="Runs before any is counted.")] = 2,
    runs: Annotated[int, typer.Option(help="Counted runs of each measurement, at least.")] = 10,
    seconds: Annotated[float, typer.Option(help="Counted time of each measurement, at least.")] = 0.0,
    mlperf_like: Annotated[
        bool,
        typer.Option("--mlperf-like", help="Time for 60 s or more and show 90th percentiles, as SingleStream does."),
    ] = False,
    batch: Annotated[
        list[int] | None, typer.Option(help="Encode so many pictures at once, too; repeat for a sweep.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads on the CPU; repeat for a sweep, whose contenders take turns.")
    ] = None,
    reference: Annotated[
        bool,
        typer.Option("--reference", help="Time segment-anything's own predictor on each model, too, in torch."),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier bench.json: tell what is slower or faster since, by interval."),
    ] = None,
    memory: Annotated[
        bool, typer.Option(help="Measure the start and the peak memory, of host and device, of a fresh process.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for bench.json and a CSV.", callback=claim)
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = "auto",
) -> None:
    """Measure latency, memory and size; models and runtimes take turns, so that noise hits all alike."""
    from sam_edge.bench.disturbance import Watch
    from sam_edge.bench.hardware import hardware, slug
    from sam_edge.bench.provenance import provenance
    from sam_edge.bench.table import compare as compare_rows
    from sam_edge.bench.table import comparisons, content, details, read_rows, rich_table, write_csv, write_json
    from sam_edge.commands.device.bench import bench as bench_
    from sam_edge.data.image import read_image
    from sam_edge.errors import BenchError
    from sam_edge.files import atomic_folder, check_target

    if out is not None:
        check_target(out)
    earlier = None if compare is None else read_rows(compare)
    picture = None if image is None else read_image(image)
    if everything:
        if batch or threads or reference or earlier is not None:
            raise BenchError("--batch, --threads, --reference and --compare are of calls, not of --everything's race.")
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
            device=device,
        )
        return
    if mlperf_like:
        seconds = max(seconds, SINGLE_STREAM_SECONDS)
    settings = {
        "models": model,
        "warmup": warmup,
        "runs": runs,
        "seconds": seconds,
        "batch": batch or [],
        "threads": threads or [],
        "seed": seed,
        "device": device,
    }
    others = {}
    if reference:
        from sam_edge.commands.workshop.reference import NAME, reference_calls

        others[NAME] = reference_calls
    watch = Watch()
    with progress("bench") as on_progress:
        rows = bench_(
            model,
            [name.value for name in runtime or ()],
            image=picture,
            memory=memory,
            warmup=warmup,
            runs=runs,
            min_seconds=seconds,
            batches=batch or (),
            threads=threads or (),
            others=others,
            seed=seed,
            device=device,
            on_progress=on_progress,
        )
    disturbance = watch.so_far()
    machine = {**hardware(), "disturbance": asdict(disturbance)}
    measured = content(rows, provenance({row.model: row.model_sha256 for row in rows}, hardware=machine), settings)
    changes = [] if earlier is None else compare_rows(rows, earlier[1])
    if earlier is not None:
        measured["changes"] = [{**asdict(change), "verdict": change.verdict} for change in changes]
    if out is not None:
        with atomic_folder(out) as work:
            write_json(measured, work / "bench.json")
            write_csv(rows, measured["provenance"], work / f"{slug(machine)}.csv")
    if as_json:
        print_json(measured)
        return
    statistic = "p90_ms" if mlperf_like else "median_ms"
    stdout().print(rich_table(rows, statistic))
    lines: list[str | None] = [*details(rows, statistic), *comparisons(rows), disturbance.words()]
    if earlier is not None:
        was = {name: earlier[0].get("hardware", {}).get(name) for name in ("cpu", "gpu", "cores")}
        if was != {name: machine[name] for name in was}:
            lines.append(
                f"the earlier file is of another machine: {was['cpu']}, {was['cores']} cores, GPU {was['gpu']}."
            )
        lines += [change.words() for change in changes]
    for line in lines:
        if line is not None:
            stdout().print(line, highlight=False)


def _race(model: list[str], runtimes: list[str], out: Path | None, as_json: bool, **options: Any) -> None:
    """`bench --everything`: the race of one model, its table and files."""
    from sam_edge.bench.everything import race_table, write_laps
    from sam_edge.bench.hardware import slug
    from sam_edge.bench.provenance import provenance, used_sha256
    from sam_edge.commands.workshop.reference import race_everything
    from sam_edge.errors import BenchError
    from sam_edge.files import atomic_folder

    if len(model) != 1:
        raise BenchError(f"the race of everything mode is between runtimes of one model, got {len(model)} models.")
    with progress("race") as on_progress:
        result = race_everything(model[0], runtimes, **options, on_progress=on_progress)
    result = {"provenance": provenance({model[0]: used_sha256(model[0])}), **result}
    if out is not None:
        with atomic_folder(out) as work:
            (work / "bench.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            write_laps(
                result["contenders"], result["provenance"], work / f"{slug(result['provenance']['hardware'])}.csv"
            )
    if as_json:
        print_json(result)
    else:
        stdout().print(race_table(result["contenders"]))
