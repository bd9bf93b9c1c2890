"""TensorRT engines of an exported folder: built here, without a GPU if need be, to run on the devices named."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from sam_edge.errors import ExportError
from sam_edge.files import atomic_folder, sha256_of
from sam_edge.runtimes.cuda import machine_target
from sam_edge.runtimes.engines import Engine, Flavor, Shapes, load_library, logger, write_engines
from sam_edge.runtimes.folder import MANIFEST, ExportedFolder

RTX_TARGETS = ("sm86", "sm89")
"""What `rtx` builds for when no target is named: RTX 30 and A-series laptops, RTX 40 and Ada workstations."""


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


def build_engines(
    exported: ExportedFolder,
    out: str | Path,
    options: TrtOptions | None = None,
    on_build: Callable[[Engine], None] | None = None,
) -> list[Engine]:
    """Write `out`: the exported folder's graphs, their engines for each target, and `engine.json`.

    `out` stays an exported folder that every runtime opens; it may be `exported`'s own. `on_build` hears of each
    engine as it is finished (a build takes seconds to minutes).

    Raises:
        BackendUnavailableError: the flavor's library or, for `standard`, the GPU is absent.
        ExportError: options or a target that cannot be, int8 graphs in the CPU's dialect, or a graph that the library
            refuses.
    """
    options = options or TrtOptions()
    _check(exported, options)
    trt = load_library(options.flavor)
    targets = resolve_targets(trt, options)
    engines: list[Engine] = []
    with atomic_folder(out) as work:
        copy_graphs(exported, work)
        for graph in exported.graphs:
            for target in targets:
                engines.append(_build(trt, exported, graph, target, options, work))
                if on_build is not None:
                    on_build(engines[-1])
        write_engines(work, engines)
    return engines


def _check(exported: ExportedFolder, options: TrtOptions) -> None:
    if exported.precision == "int8" and exported.dialect != "tensorrt":
        raise ExportError(
            f"{exported.path} holds int8 graphs in the {exported.dialect} dialect, whose zero points TensorRT refuses: "
            "export the quantized checkpoint again with --dialect tensorrt."
        )
    for name in ("max_batch", "max_sets", "max_points"):
        if getattr(options, name) < 1:
            raise ExportError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")


def resolve_targets(trt: Any, options: TrtOptions) -> tuple[str, ...]:
    """The targets to build for, each once.

    Raises:
        ExportError: a target that the library does not build for; the message lists those it does.
        BackendUnavailableError: `standard` on a machine without a GPU.
    """
    if options.flavor == "standard":
        allowed: tuple[str, ...] = (machine_target(),)
        wanted = options.targets or allowed
        where = "TensorRT builds for this machine's GPU only"
    else:
        allowed = rtx_targets(trt)
        wanted = options.targets or RTX_TARGETS
        where = f"TensorRT-RTX {trt.__version__} does not build for it"
    for target in wanted:
        if target not in allowed:
            raise ExportError(f"target {target!r}: {where}; allowed: {', '.join(allowed)}.")
    return tuple(dict.fromkeys(wanted))


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


def _build(trt: Any, exported: ExportedFolder, graph: str, target: str, options: TrtOptions, folder: Path) -> Engine:
    """Build one graph for one target into `folder`."""
    start = perf_counter()
    log = logger(options.flavor)
    log.errors.clear()
    builder = trt.Builder(log)
    network, parser = _parse(trt, builder, log, folder / exported.graphs[graph]["file"])
    config = builder.create_builder_config()
    if options.flavor == "rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    shapes = profile_shapes(exported.graphs[graph]["inputs"], options, exported.config.decoder.heads)
    profile = builder.create_optimization_profile()
    for name, steps in shapes.items():
        profile.set_shape(name, steps["min"], steps["opt"], steps["max"])
    config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ExportError(f"the {graph} could not be built for {target}: {log.told()}.")
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
        precision=exported.precision,
        shapes=shapes,
        onnx_sha256=exported.graphs[graph]["sha256"],
        sha256=sha256_of(path),
        build_seconds=round(perf_counter() - start, 3),
        bytes=path.stat().st_size,
    )


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
