"""`sam-edge run`: the whole lineage from one recipe, each step once, skipped while its inputs are unchanged."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from sam_edge import __version__
from sam_edge.bench.hardware import hardware
from sam_edge.bench.kernels import measured_rates
from sam_edge.bench.memory import file_bytes
from sam_edge.bench.report import LayerCost, LayerTime, Picture, Report, StepReport, summary, write_report
from sam_edge.bench.report_widths import widths_png
from sam_edge.bench.roofline import NodeTime, by_operator, profiled
from sam_edge.bench.table import BenchRow, as_dict
from sam_edge.commands.common import OnProgress, counting
from sam_edge.commands.device.bench import bench
from sam_edge.commands.workshop.compress import compress
from sam_edge.commands.workshop.export import to_engines, to_onnx
from sam_edge.commands.workshop.quantize import quantize
from sam_edge.commands.workshop.recipe import Recipe
from sam_edge.data import open_labelled, open_some
from sam_edge.errors import BackendUnavailableError, DataError, SamEdgeError
from sam_edge.evaluate.miou import Asked, evaluate_prompts, iou
from sam_edge.export.node_layers import layers_of_nodes
from sam_edge.export.to_onnx import OnnxOptions
from sam_edge.files import atomic_file, parse_json, put_right, sha256_of
from sam_edge.models.registry import load_model
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.runtimes.open import open_runtime
from sam_edge.runtimes.openvino_runtime import float_runtimes
from sam_edge.runtimes.threads import cpu_threads
from sam_edge.segment.overlay import overlay
from sam_edge.segment.predictor import SamPredictor

PICTURES, LOOKED_AT = 3, 9
"""Pictures in the report, those of the val split's first so many that lose most from the first model to the last."""

AS_EXPORTED = "evaluated as exported: the export holds that graphs and checkpoint agree"
SIMULATED = f"{AS_EXPORTED}; torch only simulates integers, so not timed in it"
RIVAL = "timed for comparison: the same graphs, so not evaluated again"


@dataclass(frozen=True)
class Stage:
    """One model of the lineage."""

    name: str
    """In the report."""
    parent: str | None
    kind: str
    spec: str
    """What opens it: a MODEL."""
    runtime: str | None
    """What it is timed on; None for an engine, which needs its GPU, and for simulated integers."""
    note: str | None = None
    exported: str | None = None
    """The stage whose accuracy is its own."""


class Ledger:
    """What has been done in a run's folder, and from which inputs."""

    def __init__(
        self, folder: Path, say: Callable[[str], None], on_progress: OnProgress | None = None, total: int | None = None
    ) -> None:
        """`total` steps are to come."""
        self.folder, self.on_progress = folder, on_progress
        self._say, self._begun, self._total = say, 0, total

    def begin(self, name: str) -> None:
        """Say which step of how many it is."""
        self._begun += 1
        self.say(f"{name} ...")
        if self.on_progress is not None:
            self.on_progress(0, 1, name)

    def say(self, text: str) -> None:
        """A line, behind the step's number."""
        self._say(text if self._total is None else f"[{self._begun}/{self._total}] {text}")

    def step(self, name: str, inputs: Any, made: Path | None, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `work()`, or the one on record if inputs and what was made are unchanged."""
        key = hashlib.sha256(json.dumps([name, inputs, __version__], sort_keys=True, default=str).encode()).hexdigest()
        record = self.folder / "steps" / f"{name}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            saved = parse_json(record.read_bytes())
            result, seconds = dict(saved["result"]), float(saved["result"]["step_seconds"])
            if saved["key"] == key and saved["made"] == _fingerprint(made):
                self._begun += 1
                self.say(f"{name}: unchanged, skipped")
                return {**result, "step_seconds": seconds}
        for written in (record, made):
            if written is not None:
                put_right(written)
        self.begin(name)
        started = perf_counter()
        result = {**work(), "step_seconds": perf_counter() - started}
        with atomic_file(record) as part:
            part.write_text(json.dumps({"key": key, "made": _fingerprint(made), "result": result}, default=str))
        self.say(f"{name}: {result['step_seconds']:.0f} s")
        return result


def _fingerprint(made: Path | None) -> str | None:
    return sha256_of(made) if made is not None and made.exists() else None


def _data_state(spec: str) -> Any:
    """What a step that reads `spec` depends on: the files' names, sizes and times."""
    root = Path(spec)
    if not root.exists():
        return spec
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    return [spec, [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]]


def run(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    say: Callable[[str], None] = print,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Walk the lineage into `out`; returns the paths and the report's numbers.

    `say` is given a line as each step begins and ends, `on_progress` what goes on within it.

    Raises:
        SamEdgeError: whatever a step raises; steps done so far are kept, and the next run goes on from them.
    """
    if out.is_file():
        raise SamEdgeError(f"{out} is a file: --out needs a folder.")
    # two models made, three exported, three evaluated; then times, and the report
    ledger = Ledger(out, say, on_progress, total=10 + bool(recipe.engine.targets))
    stages, told = _make(recipe, out, ledger, device)
    seconds = {name: result["step_seconds"] for name, result in told.items()}
    measured = _measure(recipe, stages, out, ledger, device)
    ledger.begin("report")
    pictures = (*_pictures(recipe, stages, out, device, on_progress), _widths(stages, out))
    reports = tuple(_step_report(stage, measured, seconds) for stage in stages)
    last = next(stage for stage in reversed(stages) if stage.runtime == "onnxruntime").spec
    nodes = profiled(last, runs=2, rates=measured_rates(turns=3), threads=cpu_threads())
    report = Report(
        title=recipe.title,
        command=f"sam-edge run --images {recipe.images} --data {recipe.data} --out {out}",
        recipe=json.dumps(asdict(recipe), indent=1),
        hardware=hardware(),
        steps=reports,
        pictures=pictures,
        layers=_by_operator(nodes),
        rounding=_by_layer(told["quantized"].get("sensitivities", {}), nodes, last),
        notes=(
            f"mIoU over the val split of {recipe.data}; latency is the median of {recipe.bench.runs} runs, in which "
            "the models of a runtime take turns.",
        ),
    )
    path = write_report(report, out / "report")
    return {
        "out": str(out),
        "report": str(path),
        "summary": summary(report),
        "steps": [asdict(step) for step in reports],
    }


def _make(recipe: Recipe, out: Path, ledger: Ledger, device: str) -> tuple[list[Stage], dict[str, dict[str, Any]]]:
    """Compress, quantize, export, build; returns the stages and what each step told."""
    base, seed, images = recipe.model, recipe.seed, recipe.images
    pictures = _data_state(images)
    start = _fingerprint(Path(base)) or base
    told: dict[str, dict[str, Any]] = {}

    def step(name: str, inputs: Any, made: Path, work: Callable[[], dict[str, Any]]) -> str | None:
        told[name] = ledger.step(name, inputs, made, work)
        return _fingerprint(made)

    compressed, quantized = out / "compressed", out / "quantized"
    slim, integer, trt = recipe.compress, recipe.quantize, recipe.engine

    def onnx(name: str, spec: str, parent: Any, options: OnnxOptions) -> Path:
        made = out / name
        work = partial(to_onnx, spec, images, made, options, seed=seed, device="cpu", on_progress=ledger.on_progress)
        step(name, [parent, pictures, asdict(options), seed], made, work)
        return made

    compressed_key = step(
        "compressed",
        [start, pictures, asdict(slim)],
        compressed,
        partial(compress, base, images, compressed, slim, device=device, on_progress=ledger.on_progress),
    )
    quantized_key = step(
        "quantized",
        [compressed_key, pictures, asdict(integer)],
        quantized,
        partial(
            quantize,
            str(compressed),
            images,
            quantized,
            integer,
            calibration_images=integer.calibration_images,
            ranked=True,
            device=device,
            on_progress=ledger.on_progress,
        ),
    )
    base_onnx = onnx("base-onnx", base, start, OnnxOptions("fp32"))
    compressed_onnx = onnx("compressed-onnx", str(compressed), compressed_key, OnnxOptions("fp32"))
    integer_onnx = onnx("quantized-onnx", str(quantized), quantized_key, OnnxOptions("int8", "cpu"))
    stages = [
        Stage("base", None, "checkpoint", base, "torch", AS_EXPORTED, "base-onnx"),
        Stage("base-onnx", "base", "onnx fp32", str(base_onnx), "onnxruntime"),
        *(
            Stage(f"base-{form}", "base", "onnx fp32", str(base_onnx), form, RIVAL)
            for form in float_runtimes()
            if form != "onnxruntime"
        ),
        Stage("compressed", "base", "compress", str(compressed), "torch", AS_EXPORTED, "compressed-onnx"),
        Stage("compressed-onnx", "compressed", "onnx fp32", str(compressed_onnx), "onnxruntime"),
        Stage("quantized", "compressed", "quantize", str(quantized), None, SIMULATED, "quantized-onnx"),
    ]
    if trt.targets:
        engine = out / "engine"
        work = partial(
            to_engines, str(quantized), images, engine, trt, seed=seed, device="cpu", on_progress=ledger.on_progress
        )
        note = f"built for {', '.join(trt.targets)}; runs on such a GPU only, so not timed here"
        try:
            step("engine", [quantized_key, pictures, asdict(trt), seed], engine, work)
            stages.append(Stage("engine", "quantized", "engine int8", str(engine), None, note))
        except BackendUnavailableError as error:
            ledger.say(f"engine: not built: {error}")
    stages.append(Stage("quantized-onnx", "quantized", "onnx int8", str(integer_onnx), "onnxruntime"))
    return stages, told


def _measure(recipe: Recipe, stages: list[Stage], out: Path, ledger: Ledger, device: str) -> dict[str, dict[str, Any]]:
    """mIoU of each stage by point and by box, and one bench of all that can be timed here."""
    measured: dict[str, dict[str, Any]] = {stage.name: {} for stage in stages}
    data = _data_state(recipe.data)
    for stage in stages:
        if stage.runtime is None or stage.note is not None:
            continue
        inputs = [_fingerprint(Path(stage.spec)), data, asdict(recipe.evaluate), recipe.seed]

        def work(stage: Stage = stage) -> dict[str, Any]:
            labelled = open_some(recipe.data, "val", limit=recipe.evaluate.limit, seed=recipe.seed)
            asked = Asked("point", multimask=True), Asked("box")
            on_image = counting(len(labelled), "mIoU", ledger.on_progress)
            runtime = open_runtime(stage.spec, stage.runtime or "auto", device)
            found = evaluate_prompts(runtime, labelled, asked, on_image=on_image)
            return {how.prompt: result.as_dict() for how, result in zip(asked, found, strict=True)}

        measured[stage.name] |= ledger.step(f"eval-{stage.name}", inputs, None, work)
    timed = [stage for stage in stages if stage.runtime]
    inputs = [[stage.spec, _fingerprint(Path(stage.spec))] for stage in timed] + [asdict(recipe.bench), hardware()]

    def race() -> dict[str, Any]:
        image = _labelled(recipe, 1)[0].image
        rows: list[BenchRow] = []
        for runtime in dict.fromkeys(stage.runtime or "" for stage in timed):
            specs = [stage.spec for stage in timed if stage.runtime == runtime]
            rows += bench(
                specs,
                [runtime],
                image=image,
                warmup=recipe.bench.warmup,
                runs=recipe.bench.runs,
                seed=recipe.seed,
                device="cpu" if runtime.startswith("openvino") else device,
                on_progress=ledger.on_progress,
            )
        return {"rows": [as_dict(row) for row in rows]}

    rows = {(row["model"], row["runtime"]): row for row in ledger.step("bench", inputs, None, race)["rows"]}
    for stage in timed:
        measured[stage.name]["bench"] = rows[stage.spec, stage.runtime]
    for stage in stages:
        if stage.exported is not None:
            measured[stage.name] = measured[stage.exported] | {"bench": rows.get((stage.spec, stage.runtime))}
    exported = measured["quantized-onnx"]["bench"]
    unlike: dict[str, Any] = {"file_bytes": file_bytes(out / "quantized"), "peak_bytes": None, "latencies": {}}
    measured["quantized"]["bench"] = exported | unlike
    return measured


def _step_report(stage: Stage, measured: dict[str, dict[str, Any]], seconds: dict[str, float]) -> StepReport:
    found = measured[stage.name]
    row = found.get("bench", {})
    latencies = row.get("latencies", {})
    median = {name: values["median_ms"] for name, values in latencies.items()}
    engine_bytes = None
    if stage.kind.startswith("engine"):
        engine_bytes = min(_engine_sizes(Path(stage.spec)).values())
    return StepReport(
        name=stage.name,
        parent=stage.parent,
        kind=stage.kind,
        runtime=stage.runtime,
        parameters=row.get("parameters"),
        encoder_macs=row.get("encoder_macs"),
        encoder_macs_with_attention=row.get("encoder_macs_with_attention"),
        file_bytes=engine_bytes or row.get("file_bytes"),
        miou_point=found["point"]["miou"] if "point" in found else None,
        miou_box=found["box"]["miou"] if "box" in found else None,
        latency_ms=median.get("encode"),
        decode_ms=median.get("decode_point"),
        end_to_end_ms=median.get("end_to_end"),
        peak_bytes=row.get("peak_bytes"),
        seconds=seconds.get(stage.name),
        note=stage.note,
    )


def _by_operator(nodes: list[NodeTime]) -> tuple[LayerTime, ...]:
    """Where an encoder's time goes, over what the machine allows."""
    return tuple(
        LayerTime(f"{row['operator']} ({row['nodes']})", row["ms"], row["limit_ms"]) for row in by_operator(nodes)
    )


def _by_layer(sensitivities: dict[str, float], nodes: list[NodeTime], folder: str) -> tuple[LayerCost, ...]:
    """What each quantized layer's rounding costs, the most sensitive first, and what its product takes."""
    layers = layers_of_nodes(Path(folder) / ExportedFolder.read(folder).graphs["encoder"]["file"])
    times: dict[str, float] = {}
    for node in nodes:
        if node.name in layers:
            times[layers[node.name]] = times.get(layers[node.name], 0.0) + node.ms
    ranked = sorted(sensitivities.items(), key=lambda pair: -pair[1])
    return tuple(LayerCost(name, nats, times.get(name)) for name, nats in ranked)


def _engine_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the engines of each target."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.engine"):
        target = file.name.split(".")[-2]
        sizes[target] = sizes.get(target, 0) + file.stat().st_size
    return sizes


def _labelled(recipe: Recipe, count: int) -> list[Any]:
    """The first few readable labelled pictures of the val split."""
    found = []
    for sample in open_labelled(recipe.data, "val"):
        if sample.annotations:
            found.append(sample)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"{recipe.data} has no labelled picture in its val split.")
    return found


def _pictures(
    recipe: Recipe, stages: list[Stage], out: Path, device: str, on_progress: OnProgress | None
) -> tuple[Picture, ...]:
    """The same pictures and boxes through the first model, the compressed one and the last: the worst losses first."""
    shown = [stage for stage in stages if stage.name in ("base-onnx", "compressed-onnx", "quantized-onnx")]
    samples = _labelled(recipe, LOOKED_AT)
    one_more = counting(len(shown) * len(samples), "pictures", on_progress)
    columns: list[list[tuple[np.ndarray, float]]] = [[] for _ in samples]
    for stage in shown:
        predictor = SamPredictor(open_runtime(stage.spec, stage.runtime or "auto", device))
        for column, sample in zip(columns, samples, strict=True):
            column.append(_segmented(predictor, sample))
            one_more()
    gained = [column[-1][1] - column[0][1] for column in columns]
    pictures = []
    for index in sorted(range(len(samples)), key=gained.__getitem__)[:PICTURES]:
        file = out / "pictures" / f"{index}.png"
        with atomic_file(file) as part:
            Image.fromarray(np.concatenate([picture for picture, _ in columns[index]], 1)).save(part, format="PNG")
        pairs = zip(shown, columns[index], strict=True)
        names = ", ".join(f"{stage.name} ({score:.3f})" for stage, (_, score) in pairs)
        caption = f"The largest masks by their boxes, and their mean IoU; left to right: {names}; "
        caption += f"mean IoU of the last less the first's: {gained[index]:+.3f}."
        pictures.append(Picture(samples[index].name, file, caption))
    return tuple(pictures)


def _widths(stages: list[Stage], out: Path) -> Picture:
    """How wide compression left every block."""
    specs = {stage.name: stage.spec for stage in stages}
    before, after = load_model(specs["base"]).config, load_model(specs["compressed"]).config
    file = out / "pictures" / "widths.png"
    with atomic_file(file) as part:
        part.write_bytes(widths_png(before, {"compressed": after}))
    return Picture("Widths per block", file, "Channels that compression kept, before it in grey (SlimSAM, figure 7).")


def _segmented(predictor: SamPredictor, sample: Any, most: int = 6) -> tuple[np.ndarray, float]:
    """A picture with the masks of its largest things' boxes, and their mean IoU."""
    predictor.set_image(sample.image)
    masks, boxes, scores = [], [], []
    for annotation in sorted(sample.annotations, key=lambda a: -a.area)[:most]:
        x, y, w, h = annotation.bbox_xywh
        boxes.append((x, y, x + w, y + h))
        masks.append(predictor.predict(box=np.array(boxes[-1]), multimask_output=False)[0][0])
        scores.append(iou(masks[-1], annotation.mask()))
    return overlay(sample.image, masks, boxes=boxes), float(np.mean(scores))
