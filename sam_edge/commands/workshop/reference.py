"""segment-anything's own code as a contender of `bench`: its predictor and its generator, of the same weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numpy as np
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from sam_edge.bench.everything import WARM_UP_POINTS, Contender, Ours, RaceOptions, Records, race, speedups, summarise
from sam_edge.bench.latency import Call
from sam_edge.commands.common import OnProgress, Picture, counting
from sam_edge.data import open_some
from sam_edge.errors import BenchError
from sam_edge.evaluate.everything import record_ious
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import resolve_device
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.calibrate import CalibrateOptions, calibrate
from sam_edge.segment.everything import STRATEGIES

NAME = "segment-anything"


def reference_calls(spec: str, image: Picture) -> Mapping[str, Call]:
    """What `bench.latency.MEASUREMENTS` means by each of its names, by segment-anything's predictor on the CPU.

    `decode_64_points` is 64 prompt sets of one point in one call, as its generator asks.
    """
    # its own copy: opened as a runtime, a model's attention is rewritten
    model = load_model(spec)
    predictor = SamPredictor(model)
    resize = ResizeLongestSide(model.image_encoder.img_size)
    height, width = image.shape[:2]

    def pre_process() -> torch.Tensor:
        resized = torch.as_tensor(resize.apply_image(image))
        return model.preprocess(resized.permute(2, 0, 1).contiguous()[None])

    pixels = pre_process()
    predictor.set_image(image)
    ticks = (np.arange(8) + 0.5) / 8
    grid = np.stack(np.meshgrid(ticks * width, ticks * height), -1).reshape(-1, 1, 2)
    points = torch.as_tensor(resize.apply_coords(grid, (height, width)), dtype=torch.float)
    centre = torch.as_tensor(resize.apply_coords(np.array([[[width / 2, height / 2]]]), (height, width)))
    middle = np.array([width, height, 3 * width, 3 * height]) / 4
    box = torch.as_tensor(resize.apply_boxes(middle[None], (height, width)), dtype=torch.float)

    def decode(points: torch.Tensor | None, boxes: torch.Tensor | None) -> torch.Tensor:
        asked = None if points is None else (points.float(), torch.ones(points.shape[:2], dtype=torch.int))
        sparse, dense = model.prompt_encoder(points=asked, boxes=boxes, masks=None)
        low_res, _ = model.mask_decoder(
            image_embeddings=predictor.features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return low_res

    with torch.no_grad():
        single = decode(centre, None)[:, :1]
    whole = SamPredictor(model)

    def end_to_end() -> object:
        whole.set_image(image)
        return whole.predict(np.array([[width / 2, height / 2]]), np.array([1]), multimask_output=False)

    calls: dict[str, Call] = {
        "pre_process": pre_process,
        "encode": lambda: model.image_encoder(pixels),
        "decode_point": lambda: decode(centre, None),
        "decode_box": lambda: decode(None, box),
        "decode_64_points": lambda: decode(points, None),
        "post_process": lambda: (
            model.postprocess_masks(single, predictor.input_size, predictor.original_size) > model.mask_threshold
        ),
        "end_to_end": end_to_end,
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}


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
    labelled = () if image is not None else open_some(data, "val", limit=photos, seed=seed)
    samples = [sample for sample in labelled if sample.annotations]
    pictures = [sample.image for sample in samples] if image is None else [image]
    place = resolve_device(device)
    own = open_runtime(spec, "torch", device)
    thresholds = own.config.thresholds
    if covered is not None:
        chosen = CalibrateOptions(points_per_side, covered=covered, survivors=survivors)
        thresholds = calibrate(own, pictures, chosen).thresholds
    options = RaceOptions(thresholds, points_per_side)
    # its own copy: opened as a runtime, a model's attention is rewritten
    contenders: dict[str, Contender] = {NAME: SegmentAnythings(load_model(spec, place), options)}
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
