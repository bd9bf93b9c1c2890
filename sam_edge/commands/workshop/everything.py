"""Everything mode's commands, joined from all floors: the race against segment-anything, and the calibration.

Nothing here prints. `on_progress(done, total, text)` is called along the way.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from sam_edge.bench.everything import WARM_UP_POINTS, Contender, Ours, RaceOptions, Records, race, speedups, summarise
from sam_edge.commands.common import OnProgress, Picture, counting, sample_pictures
from sam_edge.commands.workshop.lineage import add_step
from sam_edge.data import open_some
from sam_edge.data.sample import LabelledImage
from sam_edge.data.split import Split
from sam_edge.errors import BenchError
from sam_edge.evaluate.everything import record_ious
from sam_edge.files import check_target
from sam_edge.models.checkpoint import holds_halves, save_checkpoint, weights_sha256
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.calibrate import CalibrateOptions, calibrate
from sam_edge.segment.everything import STRATEGIES


def race_everything(
    spec: str,
    runtimes: Sequence[str],
    *,
    data: str,
    image: Picture | None = None,
    photos: int = 4,
    points_per_side: int = 32,
    survivors: float | None = None,
    covered: float | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """segment-anything's generator, ours with both strategies in torch, and the hierarchical one on other runtimes.

    On `photos` pictures of the val split of `data`, or on `image`, which has no labels. With `covered`, and `survivors`
    beside it, tau and thresholds are chosen by quantile on these pictures; otherwise they are the model's own.

    Raises:
        BenchError: `survivors` without `covered`. EverythingError: no tau.
    """
    if survivors is not None and covered is None:
        raise BenchError("--survivors moves the thresholds, so tau must follow: give --covered, too.")
    samples = _samples(data, "val", photos, seed) if image is None else []
    pictures = [sample.image for sample in samples] if image is None else [image]
    place = resolve_device(device)
    own = open_runtime(spec, "torch", device)
    thresholds = own.config.thresholds
    if covered is not None:
        chosen = CalibrateOptions(points_per_side, covered=covered, survivors=survivors)
        thresholds = calibrate(own, pictures, chosen).thresholds
    options = RaceOptions(thresholds, points_per_side)
    # its own copy: opened as a runtime, a model's attention is rewritten
    contenders: dict[str, Contender] = {"segment-anything": SegmentAnythings(load_model(spec, place), options)}
    for strategy in STRATEGIES:
        contenders[f"{strategy}, torch"] = Ours(own, strategy, options)
    for name in dict.fromkeys(runtimes):
        if name not in ("auto", "torch"):
            contenders[f"hierarchical, {name}"] = Ours(open_runtime(spec, name, device), "hierarchical", options)

    def score(index: int, records: Records) -> list[float]:
        return record_ious(samples[index], records).tolist()

    on_run = counting(len(contenders) * len(pictures), "runs", on_progress)
    rows = summarise(race(contenders, pictures, score=score if samples else None, on_run=on_run))
    return {
        "model": spec,
        "data": data if image is None else None,
        "photos": [sample.name for sample in samples] or 1,
        "points_per_side": points_per_side,
        "thresholds": asdict(thresholds),
        **speedups(rows),
        "contenders": rows,
    }


def calibrate_everything(
    spec: str,
    images: str,
    out: Path,
    options: CalibrateOptions,
    *,
    photos: int = 16,
    seed: int = 0,
    device: str = "auto",
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Choose tau on photos, and write a checkpoint folder of the same weights that has it."""
    check_target(out)
    pictures = sample_pictures(images, photos, seed, strict=strict)
    on_photo = counting(len(pictures), "photos", on_progress)
    found = calibrate(open_runtime(spec, "torch", device), pictures, options, on_photo=on_photo)
    # opened anew: opened as a runtime, a model's attention is rewritten
    model = load_model(spec)
    settings = {**asdict(options), "photos": len(pictures)}
    add_step(model, "calibrate", settings, seed, weights_sha256(model), [Path(images).name], parent=spec)
    model.config = model.config.replace(thresholds=found.thresholds)
    save_checkpoint(model, out, half=holds_halves(model))
    return {"out": str(out), **found.as_dict()}


def _samples(data: str, split: Split, limit: int, seed: int) -> list[LabelledImage]:
    return [sample for sample in open_some(data, split, limit=limit, seed=seed) if sample.annotations]


class SegmentAnythings:
    """segment-anything's own generator, untouched but for a clock around the encoder and a count of prompts."""

    def __init__(self, model: Sam, options: RaceOptions) -> None:
        shared = options.generator_options()
        self._warm_up = SamAutomaticMaskGenerator(model, WARM_UP_POINTS, **shared)
        self._generator = SamAutomaticMaskGenerator(model, options.points_per_side, **shared)
        self._encode = model.image_encoder
        self._account: dict[str, Any] = {}
        self._predict_torch = self._generator.predictor.predict_torch
        self._generator.predictor.predict_torch = self._counted

    def warm_up(self, image: Picture) -> None:
        """One short run that is not counted."""
        self._warm_up.generate(image)

    def run(self, image: Picture) -> tuple[Records, dict[str, Any]]:
        """Its records, and the account of the run."""
        self._account = {"encode_s": 0.0, "decoder_calls": 0, "points": 0}
        started: list[float] = []
        before = self._encode.register_forward_pre_hook(lambda *_: started.append(perf_counter()))
        after = self._encode.register_forward_hook(lambda *_: self._add(perf_counter() - started.pop()))
        try:
            return self._generator.generate(image), self._account
        finally:
            before.remove()
            after.remove()

    def _add(self, seconds: float) -> None:
        self._account["encode_s"] += seconds

    def _counted(self, point_coords: Any, *args: Any, **options: Any) -> Any:
        self._account["decoder_calls"] += 1
        self._account["points"] += len(point_coords)
        return self._predict_torch(point_coords, *args, **options)
