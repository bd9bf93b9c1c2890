"""Everything mode within one crop: prompts asked, masks filtered, duplicates suppressed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from sam_edge.segment.budget import FLOAT_BYTES, Budget
from sam_edge.segment.config import Coverage
from sam_edge.segment.coverage import log_contrast
from sam_edge.segment.crops import near_crop_edge
from sam_edge.segment.frame import Frame
from sam_edge.segment.prompts import FOREGROUND, Prompts
from sam_edge.segment.records import Found, run_lengths
from sam_edge.segment.runtime import Embeddings, Runtime
from sam_edge.segment.scaling import Scaling
from sam_edge.segment.upscaled import Stored, Upscaled, acceleration_of, embed, suppressed, upscale

MULTIMASK = slice(1, 4)
"""The three of the four masks that answer an ambiguous prompt."""


@dataclass(frozen=True)
class Filters:
    """What a mask must pass."""

    pred_iou: float
    """Predicted IoU that it must exceed; none if not positive."""
    stability: float
    """Smallest stability score; any if not positive."""
    stability_offset: float
    """How far the mask threshold moves either way for the stability score, in logits."""
    box_nms: float
    """Largest IoU of boxes at which both masks of a crop stay."""


@dataclass(frozen=True)
class Passing:
    """Masks that passed the filters."""

    points: Int[np.ndarray, "k"]
    """Which point each answers."""
    masks: Int[np.ndarray, "k"]
    """Which of the point's four masks it is."""
    iou: Float32[np.ndarray, "k"]
    """Predicted IoU."""
    stability: Float32[np.ndarray, "k"]
    boxes: Int[np.ndarray, "k 4"]
    """XYXY in the crop."""
    held: Upscaled | None
    """All K, or None where candidates keep them."""

    @property
    def upscaled(self) -> Upscaled:
        """All K, of what `CropWalk.passing` gave."""
        assert self.held is not None
        return self.held


class CropWalk:
    """One crop of a picture, embedded once, and the points that may be asked about it."""

    def __init__(
        self,
        runtime: Runtime,
        image: UInt8[np.ndarray, "h w 3"],
        crop_box: tuple[int, int, int, int],
        grid: Float[np.ndarray, "p 2"],
        filters: Filters,
        budget: Budget,
        embeddings: Embeddings | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """`embeddings` are the crop's, where they are at hand; `size` is the picture's, where `image` is a reduced form
        of it that the one crop shows whole."""
        x0, y0, x1, y1 = crop_box
        frame = Frame.of(y1 - y0, x1 - x0, runtime.config.image_size)
        self.size, self.crop_box = size or (image.shape[0], image.shape[1]), crop_box
        self.points = grid * np.array([x1 - x0, y1 - y0])
        self.scaling = Scaling.of(frame, runtime.config.mask_size)
        self._coords = frame.to_input(self.points).astype(np.float32)
        self._runtime, self._filters, self._budget = runtime, filters, budget
        # of a reduced picture the one crop is all that there is
        self._crop, self._grid = image[y0:y1, x0:x1], grid
        self._used = frame.input_size[0] / frame.image_size, frame.input_size[1] / frame.image_size
        if embeddings is None:
            embeddings = embed(runtime, self._crop, (y1 - y0, x1 - x0))
        self._state = runtime.prepare(embeddings)

    def passing(
        self, points: Int[np.ndarray, "n"], on_points: Callable[[int], None] = lambda count: None
    ) -> Iterator[Passing]:
        """Ask points, a batch at a time, and yield the masks that pass; `on_points` hears how many were asked."""
        filters = self._filters
        for first in range(0, len(points), self._budget.points):
            batch = points[first : first + self._budget.points]
            prediction = self._runtime.predict(self._state, self._prompts(batch))
            iou = prediction.iou[:, MULTIMASK]
            # what segment-anything writes as `> 0.0` turns the filter off, and so here
            wanted = iou > filters.pred_iou if filters.pred_iou > 0 else np.ones_like(iou, bool)
            all_sets, all_masks = np.nonzero(wanted)
            for start in range(0, len(all_sets), self._budget.masks):
                some = slice(start, start + self._budget.masks)
                sets, masks = all_sets[some], all_masks[some]
                upscaled = upscale(self._runtime, prediction, sets, masks + MULTIMASK.start, self.scaling)
                measured = upscaled.measure(filters.stability_offset)
                keep = ~near_crop_edge(measured.boxes, self.crop_box, (0, 0, self.size[1], self.size[0]))
                if filters.stability > 0:
                    keep &= measured.stability >= filters.stability
                if keep.any():
                    yield Passing(
                        batch[sets[keep]],
                        masks[keep] + MULTIMASK.start,
                        iou[sets, masks][keep],
                        measured.stability[keep],
                        measured.boxes[keep],
                        upscaled.kept(keep),
                    )
            on_points(len(batch))

    def confidence(self, masks: Upscaled, coverage: Coverage) -> Float32[np.ndarray, "p"]:
        """How sure masks are to answer each of all points; -inf where none does."""
        if coverage == "contrast":
            masks = masks.kept(masks.large(self._used))
        if not len(masks):
            return np.full(len(self.points), -np.inf, np.float32)
        xs, ys = self.points.astype(np.int64).T
        # a point on the far edge, 1.0 in the grid, belongs to the last pixel
        height, width = self.scaling.size
        largest = masks.at(np.minimum(ys, height - 1), np.minimum(xs, width - 1)).max(0)
        return largest - self._log_contrast if coverage == "contrast" else largest

    @cached_property
    def _log_contrast(self) -> Float32[np.ndarray, "p"]:
        return log_contrast(self._crop, self._grid)

    def candidates(self) -> "Candidates":
        """An empty collection of this crop's masks, of as many as memory has room for; others are decoded again."""
        own, nms = acceleration_of(self._runtime), self._filters.box_nms
        most = self._budget.stored
        if own is not None:
            room = most * self._runtime.config.mask_size**2 * FLOAT_BYTES
            most = room // own.stored_bytes(self.scaling)
        return Candidates(max(most, 1), lambda boxes, scores: suppressed(self._runtime, boxes, scores, nms))

    def found(self, candidates: "Candidates") -> list[Found]:
        """The masks left when duplicates are suppressed, best first."""
        merged = candidates.in_order()
        kept = suppressed(self._runtime, merged.boxes, merged.iou, self._filters.box_nms).tolist()
        x0, y0, _, _ = self.crop_box
        shift = np.array([x0, y0, x0, y0])
        return [
            Found(
                size=(self.size[0], self.size[1]),
                runs=run_lengths(self._uncropped(stored.mask())),
                box=tuple((merged.boxes[index] + shift).tolist()),
                predicted_iou=merged.iou[index].item(),
                stability_score=merged.stability[index].item(),
                point=tuple((self.points[merged.points[index]] + shift[:2]).tolist()),
                crop_box=self.crop_box,
            )
            for index, stored in zip(kept, self._stored(candidates, merged, kept), strict=True)
        ]

    def _prompts(self, points: Int[np.ndarray, "n"]) -> Prompts:
        coords = self._coords[points][None, :, None]
        return Prompts.build(coords, np.full(coords.shape[:3], FOREGROUND))

    def _stored(self, candidates: "Candidates", merged: Passing, kept: list[int]) -> Iterator[Stored]:
        """The masks kept, those decoded again that were dropped in between."""
        for index in kept:
            point, mask = merged.points[index : index + 1], merged.masks[index : index + 1]
            stored = candidates.stored.get((int(point[0]), int(mask[0])))
            if stored is None:
                prediction = self._runtime.predict(self._state, self._prompts(point))
                (stored,) = upscale(self._runtime, prediction, np.zeros_like(mask), mask, self.scaling).stored()
            yield stored

    def _uncropped(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "height width"]:
        if mask.shape == self.size:
            return mask
        x0, y0, x1, y1 = self.crop_box
        whole = np.zeros(self.size, bool, order="F")
        whole[y0:y1, x0:x1] = mask
        return whole


class Candidates:
    """Masks that passed, until duplicates are suppressed; at most `most` of them are kept as they are."""

    def __init__(self, most: int, suppress: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        """`suppress(boxes, scores)` gives the indices left."""
        self._most, self._suppress = most, suppress
        self._parts: list[Passing] = []
        self.stored: dict[tuple[int, int], Stored] = {}
        """By point and mask."""

    def add(self, passing: Passing) -> None:
        """Take masks in."""
        names = zip(passing.points.tolist(), passing.masks.tolist(), strict=True)
        self.stored |= zip(names, passing.upscaled.stored(), strict=True)
        self._parts.append(replace(passing, held=None))
        if len(self.stored) > self._most:
            self._drop()

    def in_order(self) -> Passing:
        """What is known of them all, in the order of their points and masks, however they came."""
        if not self._parts:
            none, empty = np.zeros(0, np.int64), np.zeros(0, np.float32)
            return Passing(none, none, empty, empty, np.zeros((0, 4), np.int64), None)
        known = [name for name in vars(self._parts[0]) if name != "held"]
        joined = {name: np.concat([getattr(part, name) for part in self._parts]) for name in known}
        order = np.lexsort((joined["masks"], joined["points"]))
        return Passing(**{name: part[order] for name, part in joined.items()}, held=None)

    def _drop(self) -> None:
        """Leave half of what may be kept: of masks not suppressed so far, those of best predicted IoU."""
        merged = self.in_order()
        best = self._suppress(merged.boxes, merged.iou)
        names = list(zip(merged.points[best].tolist(), merged.masks[best].tolist(), strict=True))
        kept = [name for name in names if name in self.stored][: self._most // 2]
        self.stored = {name: self.stored[name] for name in kept}
