"""Masks as a decoder leaves them, wherever that is: everything mode asks the same of them on a CPU and on a GPU."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from sam_edge.segment.coverage import large
from sam_edge.segment.frame import to_pixels
from sam_edge.segment.masks import Measured, mask_of, measure
from sam_edge.segment.records import suppress
from sam_edge.segment.runtime import Embeddings, Prediction, Runtime
from sam_edge.segment.scaling import Scaling


@runtime_checkable
class Stored(Protocol):
    """A mask in as few bytes as its place allows, kept until duplicates are suppressed."""

    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its pixels at the picture's size, in column-major order."""
        ...


@runtime_checkable
class Upscaled(Protocol):
    """K masks of a picture."""

    def __len__(self) -> int: ...

    def measure(self, offset: float) -> Measured:
        """Stability scores and boxes: `sam_edge.segment.masks.measure`."""
        ...

    def kept(self, which: Bool[np.ndarray, "k"]) -> "Upscaled":
        """Some of them."""
        ...

    def at(self, ys: Int[np.ndarray, "p"], xs: Int[np.ndarray, "p"]) -> Float32[np.ndarray, "k p"]:
        """Logits at pixels of the picture: `Scaling.at`."""
        ...

    def large(self, used: tuple[float, float]) -> Bool[np.ndarray, "k"]:
        """Which are large: `sam_edge.segment.coverage.large`."""
        ...

    def stored(self) -> list[Stored]:
        """Each by itself."""
        ...

    @property
    def logits(self) -> Float32[np.ndarray, "k h w"]:
        """Low-resolution logits, on the host."""
        ...


@runtime_checkable
class Acceleration(Protocol):
    """What a runtime on a GPU does there with pictures and masks; a runtime that has one calls it `acceleration`."""

    def pixels(self, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] | None) -> Any:
        """What `sam_edge.segment.frame.to_pixels` makes of a picture, for the runtime's own `encode`."""
        ...

    def upscaled(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"], scaling: Scaling
    ) -> Upscaled:
        """What `Runtime.upscale` gives, left where it is."""
        ...

    def stored_bytes(self, scaling: Scaling) -> int:
        """Bytes of a mask that is `Stored`."""
        ...

    def suppress(
        self, boxes: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
    ) -> Int[np.ndarray, "kept"]:
        """`sam_edge.segment.records.suppress`."""
        ...


def acceleration_of(runtime: Runtime) -> Acceleration | None:
    """A runtime's own, where it has one."""
    found: Acceleration | None = getattr(runtime, "acceleration", None)
    return found


def embed(runtime: Runtime, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] | None = None) -> Embeddings:
    """Embeddings of a picture; `size` is the height and width that it is a reduced form of."""
    own = acceleration_of(runtime)
    return runtime.encode(to_pixels(image, runtime.config, size)[0] if own is None else own.pixels(image, size))


def upscale(
    runtime: Runtime,
    prediction: Prediction,
    sets: Int[np.ndarray, "k"],
    masks: Int[np.ndarray, "k"],
    scaling: Scaling,
) -> Upscaled:
    """Mask `masks[i]` of set `sets[i]`, where the runtime leaves it."""
    own = acceleration_of(runtime)
    if own is None:
        return OnHost(runtime.upscale(prediction, sets, masks), scaling)
    return own.upscaled(prediction, sets, masks, scaling)


def suppressed(
    runtime: Runtime, boxes: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
) -> Int[np.ndarray, "kept"]:
    """Indices left by box non-maximum suppression, best first."""
    own = acceleration_of(runtime)
    return suppress(boxes, scores, threshold) if own is None else own.suppress(boxes, scores, threshold)


@dataclass(frozen=True)
class LowResolution:
    """A mask by its low-resolution logits."""

    logits: Float32[np.ndarray, "h w"]
    scaling: Scaling

    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its pixels at the picture's size."""
        return mask_of(self.logits, self.scaling)


@dataclass(frozen=True)
class OnHost:
    """Masks by low-resolution logits in NumPy."""

    logits: Float32[np.ndarray, "k h w"]
    scaling: Scaling

    def __len__(self) -> int:
        return len(self.logits)

    def measure(self, offset: float) -> Measured:
        """Stability scores and boxes."""
        return measure(self.logits, self.scaling, offset)

    def kept(self, which: Bool[np.ndarray, "k"]) -> "OnHost":
        """Some of them."""
        return OnHost(self.logits[which], self.scaling)

    def at(self, ys: Int[np.ndarray, "p"], xs: Int[np.ndarray, "p"]) -> Float32[np.ndarray, "k p"]:
        """Logits at pixels of the picture."""
        return self.scaling.at(self.logits, ys, xs)

    def large(self, used: tuple[float, float]) -> Bool[np.ndarray, "k"]:
        """Which are large."""
        return large(self.logits, used)

    def stored(self) -> list[Stored]:
        """Each by itself: copies, for a view would keep the logits of its whole batch."""
        return [LowResolution(one.copy(), self.scaling) for one in self.logits]
