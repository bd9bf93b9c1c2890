"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
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

    magnitude = "magnitude"
    random = "random"


class Method(StrEnum):
    """Compression method."""

    slimsam = "slimsam"


class Schedule(StrEnum):
    """Order of pruning and distillation."""

    one_step = "one-step"


class Metric(StrEnum):
    """How scales are chosen."""

    minmax = "minmax"


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
def compress(
    model: Model,
    images: Images,
    out: Out,
    method: Annotated[Method, typer.Option(help="Compression method.")] = Method.slimsam,
    schedule: Annotated[Schedule, typer.Option(help="one-step prunes everything at once, then distils.")] = (
        Schedule.one_step
    ),
    ratio: Annotated[float, typer.Option(help=doc("sam_edge.compress.prune", "PruneOptions", "ratio"))] = 0.5,
    importance: Annotated[
        Importance, typer.Option(help=doc("sam_edge.compress.prune", "PruneOptions", "importance"))
    ] = Importance.magnitude,
    round_to: Annotated[int, typer.Option(help=doc("sam_edge.compress.prune", "PruneOptions", "round_to"))] = 0,
    epochs: Annotated[int, typer.Option(help=doc("sam_edge.compress.distil", "DistilOptions", "epochs"))] = 40,
    batch_size: Annotated[int, typer.Option(help=doc("sam_edge.compress.distil", "DistilOptions", "batch_size"))] = 4,
    learning_rate: Annotated[
        float, typer.Option(help=doc("sam_edge.compress.distil", "DistilOptions", "learning_rate"))
    ] = 1e-4,
    workers: Annotated[int, typer.Option(help=doc("sam_edge.compress.distil", "DistilOptions", "workers"))] = 1,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train in bfloat16.")] = False,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Prune a model's image encoder and distil it back to accuracy, on photos without labels.

    Killed and started again with the same command, it continues.
    """
    from sam_edge import steps
    from sam_edge.bench.units import count
    from sam_edge.compress.distil import DistilOptions
    from sam_edge.compress.one_step import OneStepOptions
    from sam_edge.compress.prune import PruneOptions

    options = OneStepOptions(
        PruneOptions(ratio, importance.value, round_to, seed),
        DistilOptions(epochs, batch_size, learning_rate, workers, bf16, seed),
    )
    with _progress("compress") as on_progress:
        result = steps.compress(
            model, images, out, options, device=device.value, strict=strict, on_progress=on_progress
        )
    parent = result["parent"]
    error = result["embedding_error"]
    _report(
        as_json,
        result,
        f"{out}: {count(parent['parameters'])} -> {count(result['parameters'])} parameters, "
        f"{count(parent['encoder_macs'])} -> {count(result['encoder_macs'])} encoder MACs"
        + ("" if error is None else f", embedding error {error:.3f} of the teacher's variance"),
    )


@app.command()
def quantize(
    model: Model,
    images: Images,
    out: Out,
    weights: Annotated[int, typer.Option(help=doc("sam_edge.quantize.ptq", "QuantizeOptions", "weights"))] = 8,
    activations: Annotated[int, typer.Option(help=doc("sam_edge.quantize.ptq", "QuantizeOptions", "activations"))] = 8,
    metric: Annotated[Metric, typer.Option(help=doc("sam_edge.quantize.ptq", "QuantizeOptions", "metric"))] = (
        Metric.minmax
    ),
    calibration_images: Annotated[int, typer.Option(help="Pictures that ranges are taken from.")] = 8,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of layer names to leave in float, as image_encoder.neck.*; repeat for more."),
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
        skip=(*defaults.skip, *(skip or ())),
        seed=seed,
    )
    result = steps.quantize(
        model, images, out, options, calibration_images=calibration_images, device=device.value, strict=strict
    )
    _report(
        as_json,
        result,
        f"{out}: {result['layers']} layers, {weights}-bit weights, {activations}-bit activations, "
        f"{size(result['file_bytes'])}",
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
    everything: Annotated[bool, typer.Option("--everything", help="Also time everything mode.")] = False,
    points_per_side: Annotated[int, typer.Option(help="Grid of everything mode.")] = 32,
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

    settings = {"models": model, "warmup": warmup, "runs": runs, "seed": seed, "device": device.value}
    with _progress("bench") as on_progress:
        rows = steps.bench(
            model,
            [name.value for name in runtime or ()],
            image=None if image is None else read_image(image),
            everything=everything,
            points_per_side=points_per_side,
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
    split: Annotated[SplitName, typer.Option(help="Part of the data, by the hash of the file name.")] = SplitName.val,
    limit: Annotated[int | None, typer.Option(help="Evaluate on so many pictures, drawn by the seed.")] = None,
    runtime: AsRuntime = RuntimeName.auto,
    strict: Strict = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Mean IoU on labelled pictures, by one point or one box per mask."""
    from sam_edge import steps

    with _progress("eval") as on_progress:
        result = steps.evaluate(
            model,
            data,
            prompt=prompt.value,
            multimask=multimask,
            split=split.value,
            limit=limit,
            seed=seed,
            runtime=runtime.value,
            device=device.value,
            strict=strict,
            on_progress=on_progress,
        )
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
    points_per_side: Annotated[int, typer.Option(help="Grid of everything mode.")] = 32,
    runtime: AsRuntime = RuntimeName.auto,
    as_json: Json = False,
    seed: Seed = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Segment a picture: an overlay, the masks as COCO RLE and as PNG files."""
    from sam_edge import segmenting

    prompts = segmenting.parse_prompts(point or [], box, everything)
    with _progress("segment", indefinite=True):
        result = segmenting.segment(
            model,
            image,
            out,
            prompts,
            points_per_side=points_per_side,
            runtime=runtime.value,
            device=device.value,
            seed=seed,
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
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def on_progress(done: int, total: int, text: str) -> None:
            bar.update(task, completed=done, total=total, description=text)

        yield on_progress


if __name__ == "__main__":
    main()
