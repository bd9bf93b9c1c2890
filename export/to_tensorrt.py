"""TensorRT engines of an exported folder: built here, without a GPU if need be, to run on the devices named."""

import ctypes
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from onnx import TensorProto, load

from sam_edge.errors import ExportError
from sam_edge.export.readme import engines_readme
from sam_edge.export.typed_graphs import (
    SMALLEST_IOU,
    EnginePrecision,
    Picture,
    TypedGraphs,
    check_precision,
    write_typed,
)
from sam_edge.files import atomic_file, atomic_folder, cache_folder, sha256_of
from sam_edge.runtimes.cuda import machine_target
from sam_edge.runtimes.engines import Engine, Flavor, Shapes, load_library, logger, write_engines
from sam_edge.runtimes.folder import MANIFEST, ExportedFolder

RTX_TARGETS = ("sm86", "sm89")
"""What `rtx` builds for when no target is named: RTX 30 and A-series laptops, RTX 40 and Ada workstations."""
FIRST_FP8 = 89
"""The first compute capability whose tensor cores take E4M3."""
BUILD_LOG = "build.log"

OUTPUT_TOKENS = 5
"""The decoder's tokens beside those of points: one for IoU, four for masks."""


@dataclass(frozen=True)
class TrtOptions:
    """What engines are built, and for what."""

    flavor: Flavor = "rtx"
    """`rtx` (TensorRT-RTX, builds for any of its GPUs) or `standard` (TensorRT, builds for this machine's GPU)."""
    targets: tuple[str, ...] = ()
    """Compute capabilities, as sm89; none means sm86 and sm89 for `rtx`, this machine's GPU for `standard`."""
    max_batch: int = 1
    """Most images in one call; memory for them is set aside, and more run in several calls."""
    max_sets: int = 64
    """Most prompts per image in one call; more run in several calls."""
    max_points: int = 16
    """Most points in one prompt; a box counts as two."""
    precision: EnginePrecision | None = None
    """`int8` of a quantized model, the rest of it in halves; else `fp16` (the default), `bf16`, `fp32`, or `fp8`, the
    encoder's linear layers in E4M3 (sm89 and later). Nodes that 16 bits would ruin on --images keep float32. Refused
    below a mean mask IoU with float32 of 0.98; of 0.95 in int8 and fp8, 0.9 in bf16.
    """


def build_engines(
    exported: ExportedFolder,
    out: str | Path,
    options: TrtOptions | None = None,
    images: Sequence[Picture] = (),
    others: Sequence[Picture] = (),
    on_build: Callable[[Engine], None] | None = None,
) -> list[Engine]:
    """Write `out`: the exported folder's graphs, the same with types, engines for each target, `engine.json`,
    `build.log` and a README.md.

    `out` stays an exported folder that every runtime opens; it may be `exported`'s own. See `write_typed` for `images`
    and `others`. `on_build` hears of each engine as it is finished (a build takes seconds to minutes).

    Raises:
        BackendUnavailableError: the flavor's library or, for `standard`, the GPU is absent.
        ExportError: options or a target that cannot be, graphs that a precision or the library refuses.
    """
    options = options or TrtOptions()
    precision = checked(exported, options)
    trt = load_library(options.flavor)
    targets = resolve_targets(trt, options)
    engines: list[Engine] = []
    with atomic_folder(out) as work:
        copy_graphs(exported, work)
        # TensorRT's parser is known to take Gelu since 10.15, TensorRT-RTX's takes it
        typed = write_typed(exported, work, precision, images, others, erf=options.flavor == "standard")
        with (work / BUILD_LOG).open("w", encoding="utf-8") as log:
            for graph in exported.graphs:
                for target in targets:
                    engines.append(_build(trt, exported, graph, typed, target, options, work, log))
                    if on_build is not None:
                        on_build(engines[-1])
        write_engines(work, engines, described(typed))
        (work / "README.md").write_text(engines_readme(Path(out).name, exported.config, engines, typed), "utf-8")
    return engines


def described(typed: TypedGraphs) -> dict[str, Any]:
    """What `engine.json` says of typed graphs: their agreement, and the nodes in float32 with the reason."""
    return {
        "precision": typed.precision,
        "smallest_iou": SMALLEST_IOU.get(typed.precision),
        "parity": None if typed.parity is None else typed.parity.as_dict(),
        "float32": {graph: [asdict(node) for node in nodes] for graph, nodes in typed.float32.items()},
        "fp8_layers": list(typed.fp8_layers),
    }


def checked(exported: ExportedFolder, options: TrtOptions) -> EnginePrecision:
    """The precision that an exported folder is built in.

    Raises:
        ExportError: options that cannot be, or a precision that the folder's graphs cannot have.
    """
    for name in ("max_batch", "max_sets", "max_points"):
        if getattr(options, name) < 1:
            raise ExportError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")
    precision = options.precision or ("int8" if exported.precision == "int8" else "fp16")
    check_precision(exported, precision)
    return precision


def resolve_targets(trt: Any, options: TrtOptions) -> tuple[str, ...]:
    """The targets to build for, each once; of those that nobody named, the ones that have the precision.

    Raises:
        ExportError: a target that the library does not build for, or that has no FP8 where that is asked; the message
            lists those that can be.
        BackendUnavailableError: `standard` on a machine without a GPU.
    """
    if options.flavor == "standard":
        allowed: tuple[str, ...] = (machine_target(),)
        wanted = options.targets or allowed
        where = "TensorRT builds for this machine's GPU only"
    else:
        allowed = rtx_targets(trt)
        wanted = options.targets or tuple(filter(has_fp8, RTX_TARGETS) if options.precision == "fp8" else RTX_TARGETS)
        where = f"TensorRT-RTX {trt.__version__} does not build for it"
    for target in wanted:
        if target not in allowed:
            raise ExportError(f"target {target!r}: {where}; allowed: {', '.join(allowed)}.")
        if options.precision == "fp8" and not has_fp8(target):
            raise ExportError(f"target {target!r} has no FP8: leave it out, or use --precision int8 or fp16.")
    return tuple(dict.fromkeys(wanted))


def has_fp8(target: str) -> bool:
    """Whether a compute capability's tensor cores take E4M3."""
    return int(target.removeprefix("sm")) >= FIRST_FP8


def rtx_targets(trt: Any) -> tuple[str, ...]:
    """The compute capabilities that this version of TensorRT-RTX builds for."""
    return tuple(name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM"))


def copy_graphs(exported: ExportedFolder, folder: Path) -> None:
    """Copy `model.json`, the graphs, and the weights that a large graph keeps in a file of its own."""
    files = [MANIFEST, *(graph["file"] for graph in exported.graphs.values())]
    for name in files:
        shutil.copyfile(exported.path / name, folder / name)
        with suppress(FileNotFoundError):
            shutil.copyfile(exported.path / f"{name}.data", folder / f"{name}.data")


def profile_shapes(inputs: Mapping[str, list[int | str]], options: TrtOptions, heads: int = 8) -> Shapes:
    """Smallest, likeliest and largest shape of each input: fixed sizes as they are, named ones by `options`.

    The likeliest call is everything mode's: one image, all prompts that fit, each a point and its padding, of whose
    masks all three that answer a single point are wanted. `heads` are the decoder's.
    """
    points = (1, min(2, options.max_points), options.max_points)
    sizes = {
        "batch": (1, 1, options.max_batch),
        "sets": (1, options.max_sets, options.max_sets),
        "points": points,
        "wanted": (1, 3 * options.max_sets, 4 * options.max_sets),
        "rows": tuple(heads * (OUTPUT_TOKENS + count) for count in points),
    }
    shapes: Shapes = {}
    for name, shape in inputs.items():
        unknown = {size for size in shape if isinstance(size, str)} - set(sizes)
        if unknown:
            raise ExportError(f"input {name} has a free size {sorted(unknown)[0]!r} that sam-edge does not know.")
        steps = [[size if isinstance(size, int) else sizes[size][step] for size in shape] for step in range(3)]
        shapes[name] = dict(zip(("min", "opt", "max"), steps, strict=True))
    return shapes


def _build(
    trt: Any,
    exported: ExportedFolder,
    graph: str,
    typed: TypedGraphs,
    target: str,
    options: TrtOptions,
    folder: Path,
    build_log: TextIO,
) -> Engine:
    """Build one graph for one target into `folder`; what the library logs goes to `build_log`."""
    start = perf_counter()
    log = logger(options.flavor)
    log.told(), log.kept()
    builder = trt.Builder(log)
    onnx = folder / typed.files[graph].name
    network, parser = _parse(trt, builder, log, onnx)
    config = builder.create_builder_config()
    if options.flavor == "rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    shapes = profile_shapes(exported.graphs[graph]["inputs"], options, exported.config.decoder.heads)
    profile = builder.create_optimization_profile()
    for name, steps in shapes.items():
        profile.set_shape(name, steps["min"], steps["opt"], steps["max"])
    config.add_optimization_profile(profile)
    print(f"== {graph} for {target}", file=build_log, flush=True)
    with timing_cache(config, options.flavor, trt.__version__, target), _printing_to(build_log):
        serialized = builder.build_serialized_network(network, config)
    print(*log.kept(), sep="\n", file=build_log)
    if serialized is None:
        raise ExportError(f"the {graph} could not be built for {target}: {log.told()}.")
    layers = network.num_layers
    # the network reads weights that the parser owns
    del parser
    path = folder / f"{graph}.{target}.engine"
    path.write_bytes(serialized)
    return Engine(
        file=path.name,
        graph=graph,
        target=target,
        flavor=options.flavor,
        version=trt.__version__,
        precision=typed.precision,
        shapes=shapes,
        onnx_sha256=exported.graphs[graph]["sha256"],
        sha256=sha256_of(path),
        build_seconds=round(perf_counter() - start, 3),
        bytes=path.stat().st_size,
        onnx=onnx.name,
        note=size_note(path, exported.graph_file(graph), layers),
    )


@contextmanager
def _printing_to(file: TextIO) -> Iterator[None]:
    """Have what a library prints past its logger go to a file: on stdout it would spoil --json."""
    sys.stdout.flush()
    shown = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        # the library's lines may still wait in C's buffers
        ctypes.CDLL(None).fflush(None)
        os.dup2(shown, 1)
        os.close(shown)


@contextmanager
def timing_cache(config: Any, flavor: Flavor, version: str, target: str) -> Iterator[None]:
    """Give a build what earlier ones on this machine timed, and keep what it times.

    TensorRT-RTX times nothing: it compiles on the device, and chooses there.
    """
    if flavor == "rtx":
        yield
        return
    file = cache_folder() / "tensorrt" / f"{version}-{target}.timing"
    # another version's or GPU's timings lie in another file, so that none is taken that does not fit
    config.set_timing_cache(config.create_timing_cache(file.read_bytes() if file.is_file() else b""), False)
    yield
    with atomic_file(file) as part:
        part.write_bytes(bytes(config.get_timing_cache().serialize()))


def size_note(engine: Path, onnx: Path, layers: int) -> str:
    """Why an engine is larger than its graph would be in float32, or nothing where it is not."""
    size, float32 = engine.stat().st_size, float32_bytes(onnx)
    if size <= float32:
        return ""
    text = text_bytes(engine.read_bytes())
    return (
        f"larger than {float32} bytes, its graph in float32: {text} bytes are the program's text for {layers} layers, "
        f"compiled on the device, and {size - text} are weights, some in several layouts, and what was computed of them"
    )


def float32_bytes(file: Path) -> int:
    """What an ONNX file would take with its 8-bit weights in float32."""
    data = file.with_name(f"{file.name}.data")
    weights = load(file, load_external_data=False).graph.initializer
    small = sum(
        math.prod(weight.dims) for weight in weights if weight.data_type in (TensorProto.INT8, TensorProto.UINT8)
    )
    return file.stat().st_size + (data.stat().st_size if data.is_file() else 0) + 3 * small


def text_bytes(content: bytes, shortest: int = 16) -> int:
    """Bytes of printable ASCII in runs of at least `shortest`."""
    return sum(len(run) for run in re.findall(rb"[\t\n\r -~]{%d,}" % shortest, content))


def _parse(trt: Any, builder: Any, log: Any, path: Path) -> tuple[Any, Any]:
    """The network of an ONNX file, its precision taken from the file (strongly typed), and the parser it needs.

    Raises:
        ExportError: the parser refuses the file; all that it refuses is listed.
    """
    # TensorRT 10 asks for it, 11 knows nothing else and may drop the flag
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        refused = dict.fromkeys(_refusal(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"TensorRT's parser refuses {path.name}: {'; '.join(refused) or log.told()}.")
    return network, parser


def _refusal(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
    return where + " ".join(error.desc().split()).rstrip(".")
