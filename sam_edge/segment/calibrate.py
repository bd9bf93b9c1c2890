"""Everything mode's thresholds and tau for one model, from photos without labels.

Tau belongs to the model: 8.5, the constant of TinySAM's released code, may never occur in another one's logits.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sam_edge.errors import EverythingError
from sam_edge.segment.budget import Budget
from sam_edge.segment.config import Coverage, Thresholds
from sam_edge.segment.crop_walk import MULTIMASK, CropWalk, Filters
from sam_edge.segment.everything import MAX_MEMORY_BYTES
from sam_edge.segment.grid import first_pass, regular_grid
from sam_edge.segment.masks import MASK_THRESHOLD
from sam_edge.segment.records import suppress
from sam_edge.segment.runtime import Runtime, as_runtime
from sam_edge.segment.upscaled import embed

Picture = UInt8[np.ndarray, "h w 3"]
BOX_NMS = 0.7
STABILITY_OFFSET = 1.0


@dataclass(frozen=True)
class CalibrateOptions:
    """How thresholds and tau are chosen."""

    points_per_side: int = 32
    """Grid that the hierarchical strategy is compared with."""
    max_loss: float = 0.01
    """Mean loss of agreement with the whole grid's masks that tau may cost, in IoU; tau skips what it can within it."""
    covered: float | None = None
    """Choose tau so that this share of the points lies in confident areas, whatever it costs; needs no whole grid."""
    survivors: float | None = None
    """Choose both thresholds first, at one quantile of their scores, so that this share of prompts keeps a mask."""
    nested: float | None = None
    """Largest share of a mask that may lie in a no less certain one up to eight times as large, instead of the model's
    own: 0.8 leaves out parts where the whole was found, 1 nothing. Tau's losses are counted before."""
    coverage: Coverage = "contrast"
    """What tau is compared with: logit, as in TinySAM, or contrast, which spares small things on large ones."""
    steps: int = 64
    """Values of tau tried."""

    def __post_init__(self) -> None:
        if self.nested is not None and not 0 < self.nested <= 1:
            raise EverythingError(f"nested must be in (0, 1], got {self.nested}.")
        for name in ("covered", "survivors"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise EverythingError(f"{name} must be in (0, 1), got {value}.")
        if not 0 <= self.max_loss < 1 or self.points_per_side < 1 or self.steps < 2:
            raise EverythingError(
                "max_loss must be in [0, 1), points_per_side at least 1 and steps at least 2; "
                f"got {self.max_loss}, {self.points_per_side} and {self.steps}."
            )


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and what it does on the photos it was chosen on."""

    thresholds: Thresholds
    skipped: float
    """Mean share of the grid's points that the hierarchical strategy does not ask."""
    loss: float | None
    """Mean loss of agreement with the whole grid's masks; None if tau was chosen by `covered`."""
    survivors: float
    """Mean share of the first pass's prompts that keep a mask."""
    photos: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def calibrate(
    model: Runtime | Any,
    photos: Iterable[Picture],
    options: CalibrateOptions = CalibrateOptions(),
    *,
    max_memory_bytes: int = MAX_MEMORY_BYTES,
    on_photo: Callable[[], None] = lambda: None,
) -> Calibration:
    """Choose tau, and the other thresholds where asked to, on some photos.

    Raises:
        EverythingError: no photo, filters that nothing in the first pass survives, or quantiles that are no thresholds.
    """
    runtime = as_runtime(model)
    pictures = list(photos)
    if not pictures:
        raise EverythingError("calibration needs at least one photo.")
    grid = regular_grid(options.points_per_side)
    budget = Budget.of(runtime.config, len(grid), 64, max_memory_bytes)
    # once: of SAM-B in torch they take longer than a first pass does
    embedded = [embed(runtime, picture) for picture in pictures]

    def walks(thresholds: Thresholds) -> Iterator[CropWalk]:
        filters = Filters(thresholds.pred_iou, thresholds.stability, STABILITY_OFFSET, BOX_NMS)
        for picture, embeddings in zip(pictures, embedded, strict=True):
            whole = (0, 0, picture.shape[1], picture.shape[0])
            yield CropWalk(runtime, picture, whole, grid, filters, budget, embeddings)

    thresholds = runtime.config.thresholds
    if options.survivors is not None:
        thresholds = _by_quantile(walks(Thresholds(0.0, 0.0)), first_pass(grid), options.survivors)
    seen = []
    for walk in walks(thresholds):
        seen.append(_look(walk, first_pass(grid), options.coverage, whole=options.covered is None))
        on_photo()
    confidence = np.stack([photo.confidence for photo in seen])
    # outside all masks a logit answers nothing; where contrast is taken off, zero means nothing
    answered = confidence[confidence > (MASK_THRESHOLD if options.coverage == "logit" else -np.inf)]
    if not answered.size:
        raise EverythingError(
            "no mask of the first pass answers any point: lower the model's thresholds with "
            "--survivors, or give other photos."
        )
    if options.covered is None:
        tau, loss = _within_loss(seen, answered, options)
    else:
        tau, loss = _at_cover(confidence, options.covered), None
    return Calibration(
        thresholds=Thresholds(
            thresholds.pred_iou,
            thresholds.stability,
            tau,
            options.coverage,
            runtime.config.thresholds.nested if options.nested is None else options.nested,
        ),
        skipped=float(np.mean([photo.skips(tau).mean() for photo in seen])),
        loss=loss,
        survivors=float(np.mean([photo.survivors for photo in seen])),
        photos=len(seen),
    )


@dataclass(frozen=True)
class _Photo:
    """What the first pass says about each of P points, and what every point finds."""

    confidence: Float[np.ndarray, "p"]
    """How sure the first pass's masks are to answer it; -inf where none passed."""
    first: Int[np.ndarray, "f"]
    survivors: float
    points: Int[np.ndarray, "k"]
    """Point of each mask that passed, as everything below."""
    boxes: Int[np.ndarray, "k 4"]
    iou: Float[np.ndarray, "k"]
    bits: UInt8[np.ndarray, "k bytes"]
    """Low-resolution masks."""

    def skips(self, tau: float) -> Bool[np.ndarray, "p"]:
        """Points that need not be asked."""
        skipped = self.confidence > tau
        skipped[self.first] = False
        return skipped

    def kept(self, tau: float) -> Int[np.ndarray, "n"]:
        """Masks left of those whose points are asked."""
        asked = np.flatnonzero(~self.skips(tau)[self.points])
        return asked[suppress(self.boxes[asked], self.iou[asked], BOX_NMS)]


def _look(walk: CropWalk, first: Int[np.ndarray, "f"], coverage: Coverage, *, whole: bool) -> _Photo:
    """Ask the first pass, and all other points, too, where `whole`."""
    confidence = np.full(len(walk.points), -np.inf, np.float32)
    parts, survivors = [], set()
    for passing in walk.passing(first):
        confidence = np.maximum(confidence, walk.confidence(passing.upscaled, coverage))
        survivors |= set(passing.points.tolist())
        parts.append(passing)
    if whole:
        parts += walk.passing(np.setdiff1d(np.arange(len(walk.points)), first))
    boxes = [part.boxes for part in parts] or [np.zeros((0, 4), np.int64)]
    low_res = [part.upscaled.logits for part in parts]
    return _Photo(
        confidence=confidence,
        first=first,
        survivors=len(survivors) / len(first),
        points=np.concat([part.points for part in parts] or [np.zeros(0, np.int64)]),
        boxes=np.concat(boxes),
        iou=np.concat([part.iou for part in parts] or [np.zeros(0, np.float32)]),
        bits=np.concatenate(
            [np.packbits(logits.reshape(len(logits), -1) > MASK_THRESHOLD, axis=1) for logits in low_res]
            or [np.zeros((0, 1), np.uint8)]
        ),
    )


def _at_cover(confidence: Float[np.ndarray, "n p"], covered: float) -> float:
    tau = float(np.quantile(confidence, 1 - covered, method="higher"))
    if not np.isfinite(tau):
        share = np.isfinite(confidence).mean()
        raise EverythingError(f"masks that pass the filters reach {share:.0%} of the points, fewer than {covered:.0%}.")
    return tau


def _within_loss(
    seen: list[_Photo], answered: Float[np.ndarray, "n"], options: CalibrateOptions
) -> tuple[float, float]:
    """The tau that skips most among those whose mean loss is within bounds, and that loss."""
    taus = np.unique(np.quantile(answered, np.linspace(0, 1, options.steps)))
    losses = np.mean([_losses(photo, taus) for photo in seen], 0)
    # no point's confidence is above the largest, which skips nothing and loses nothing
    best = int(np.flatnonzero(losses <= options.max_loss)[0])
    return float(taus[best]), float(losses[best])


def _losses(photo: _Photo, taus: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """1 - mean over the whole grid's masks of the IoU with the best mask that is left, at low resolution."""
    wanted = photo.bits[photo.kept(np.inf)]
    if not len(wanted):
        return np.zeros(len(taus))
    kept = [photo.kept(tau) for tau in taus]
    some = np.unique(np.concatenate(kept))
    overlap = np.stack([_ious(one, photo.bits[some]) for one in wanted])
    return np.array([1 - overlap[:, np.searchsorted(some, left)].max(1, initial=0).mean() for left in kept])


def _ious(one: UInt8[np.ndarray, "bytes"], others: UInt8[np.ndarray, "k bytes"]) -> Float[np.ndarray, "k"]:
    common = np.bitwise_count(others & one).sum(1, dtype=np.int64)
    union = np.bitwise_count(others | one).sum(1, dtype=np.int64)
    # two masks that are empty at low resolution are the same mask there
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def _by_quantile(walks: Iterable[CropWalk], first: Int[np.ndarray, "f"], survivors: float) -> Thresholds:
    """Both thresholds at the quantile of their scores at which `survivors` of the first pass's prompts keep a mask.

    The walks' own filters must let all masks through.
    """
    # the scores alone: logits of all masks would fill the memory
    scores = [(passing.iou, passing.stability) for walk in walks for passing in walk.passing(first)]
    three = MULTIMASK.stop - MULTIMASK.start
    iou, stability = (np.concat(part).reshape(-1, three) for part in zip(*scores, strict=True))
    # a score without a value, of masks empty at every threshold, passes none
    stability = np.nan_to_num(stability, nan=0.0)

    def cut(quantile: float) -> tuple[float, float]:
        return float(np.quantile(iou, quantile)), float(np.quantile(stability, quantile))

    def share(quantile: float) -> float:
        pred_iou, least = cut(quantile)
        return float(((iou > pred_iou) & (stability >= least)).any(1).mean())

    quantiles = np.linspace(0, 1, 1001)
    chosen = cut(min(quantiles, key=lambda quantile: abs(share(quantile) - survivors)))
    if chosen[0] <= 0:
        raise EverythingError(
            f"the predicted IoU that {survivors:.0%} of the prompts exceed is {chosen[0]:.3g}, and a threshold that is "
            "not positive filters nothing: ask for fewer survivors."
        )
    return Thresholds(*chosen)
