"""What is before and behind a model's graphs on a GPU: pictures in as bytes, masks out as bits.

The kernels are `sam_edge.kernels`'; without them, or without a compiler for them, runtimes do the same on the CPU.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt32

from sam_edge.errors import BackendUnavailableError
from sam_edge.kernels import masks as mask_kernels
from sam_edge.kernels import preprocess, suppression
from sam_edge.kernels.compiler import cubin_of
from sam_edge.kernels.gpu import Device, DeviceArray
from sam_edge.kernels.launcher import Gpu
from sam_edge.kernels.library import SWITCH
from sam_edge.kernels.masks import DeviceScaling, unpacked
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.coverage import LARGE
from sam_edge.segment.frame import Frame, require_picture
from sam_edge.segment.masks import Measured
from sam_edge.segment.runtime import Prediction
from sam_edge.segment.scaling import Scaling
from sam_edge.segment.upscaled import OnHost, Stored, Upscaled

Part = tuple[Int[np.ndarray, "m"], DeviceArray]
"""Places among K masks, and their logits, M x h x w."""
Parts = Callable[[Prediction, np.ndarray, np.ndarray], Iterable[Part]]


class GpuAcceleration:
    """A runtime's, as `sam_edge.segment.upscaled.Acceleration` has it."""

    def __init__(self, device: Device, config: ModelConfig, parts: Parts) -> None:
        """`parts(prediction, sets, masks)` up-scales masks and leaves their logits on the device."""
        self._device, self._config, self._parts = device, config, parts
        self._scaling: tuple[Scaling, DeviceScaling] | None = None

    def pixels(self, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] | None) -> DeviceArray:
        """A picture as the encoder's input, 1 x 3 x S x S float32 on the device.

        Raises:
            DataError: not an H x W x 3 uint8 array.
        """
        require_picture(image)
        height, width = size or image.shape[:2]
        side = self._config.image_size
        frame = Frame.of(height, width, side)
        scale = self._config.pixel_mean, self._config.pixel_std
        return preprocess.preprocess(self._device, image, frame.input_size, side, *scale)

    def upscaled(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"], scaling: Scaling
    ) -> Upscaled:
        """Masks whose logits stay on the device."""
        if isinstance(prediction.handle, np.ndarray):
            # the whole decoder answered, and its masks are here already
            return OnHost(prediction.handle[sets, masks], scaling)
        found = list(self._parts(prediction, sets, masks))
        owners, rows = np.zeros(len(sets), np.int64), np.zeros(len(sets), np.int64)
        for index, (places, _) in enumerate(found):
            owners[places], rows[places] = index, np.arange(len(places))
        groups = [_Group(logits) for _, logits in found]
        return OnDevice(self._device, self._on_device(scaling), scaling, groups, owners, rows)

    def stored_bytes(self, scaling: Scaling) -> int:
        """Bytes of a mask's bits."""
        return scaling.columns.length * -(-scaling.rows.length // mask_kernels.WORD) * 4

    def suppress(
        self, boxes: Int[np.ndarray, "n 4"], scores: Float[np.ndarray, "n"], threshold: float
    ) -> Int[np.ndarray, "kept"]:
        """Indices left by box non-maximum suppression, best first."""
        return suppression.suppress_boxes(self._device, boxes, scores, threshold)

    def _on_device(self, scaling: Scaling) -> DeviceScaling:
        # one picture's many batches of masks share it
        if self._scaling is None or self._scaling[0] is not scaling:
            self._scaling = scaling, DeviceScaling.of(self._device, scaling)
        return self._scaling[1]


@dataclass
class _Group:
    """Masks that came out of one call."""

    logits: DeviceArray
    bits: DeviceArray | None = None
    """Theirs at the picture's size, once they have been measured."""


@dataclass(frozen=True)
class Bits:
    """A mask as bits on the host."""

    words: UInt32[np.ndarray, "width words"]
    height: int

    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its pixels."""
        return unpacked(self.words, self.height)


@dataclass(frozen=True)
class OnDevice:
    """K masks by logits on a device: mask i is row `rows[i]` of group `owners[i]`."""

    device: Device = field(repr=False)
    device_scaling: DeviceScaling = field(repr=False)
    scaling: Scaling = field(repr=False)
    groups: Sequence[_Group]
    owners: Int[np.ndarray, "k"]
    rows: Int[np.ndarray, "k"]

    def __len__(self) -> int:
        return len(self.owners)

    def measure(self, offset: float) -> Measured:
        """Stability scores and boxes; the bits are made on the way."""
        stability, boxes = np.zeros(len(self), np.float32), np.zeros((len(self), 4), np.int64)
        for group, mine, rows in self._grouped():
            found = mask_kernels.measure(self.device, group.logits, self.device_scaling, offset)
            assert isinstance(found.bits, DeviceArray)
            group.bits = found.bits
            stability[mine], boxes[mine] = found.measured.stability[rows], found.measured.boxes[rows]
        return Measured(stability, boxes)

    def kept(self, which: Bool[np.ndarray, "k"]) -> "OnDevice":
        """Some of them."""
        return replace(self, owners=self.owners[which], rows=self.rows[which])

    def at(self, ys: Int[np.ndarray, "p"], xs: Int[np.ndarray, "p"]) -> Float32[np.ndarray, "k p"]:
        """Logits at pixels of the picture."""
        found = np.zeros((len(self), len(ys)), np.float32)
        for group, mine, rows in self._grouped():
            found[mine] = mask_kernels.at_points(self.device, group.logits, rows, self.device_scaling, ys, xs)
        return found

    def large(self, used: tuple[float, float]) -> Bool[np.ndarray, "k"]:
        """Which have `LARGE` of the picture."""
        found = np.zeros(len(self), bool)
        for group, mine, rows in self._grouped():
            height, width = (
                max(round(side * share), 1) for side, share in zip(group.logits.shape[1:], used, strict=True)
            )
            cells = mask_kernels.count_cells(self.device, group.logits, rows, height, width)
            # the mean in float32, as `sam_edge.segment.coverage` takes it
            found[mine] = cells.astype(np.float32) / np.float32(height * width) >= LARGE
        return found

    def stored(self) -> list[Stored]:
        """Each as bits, the only thing of a mask that leaves the device."""
        if any(group.bits is None for group, _, _ in self._grouped()):
            self.measure(0.0)
        stored: list[Stored] = []
        for owner, row in zip(self.owners.tolist(), self.rows.tolist(), strict=True):
            bits = self.groups[owner].bits
            assert bits is not None
            stored.append(Bits(self.device.get(bits[row]), self.scaling.rows.length))
        return stored

    @property
    def logits(self) -> Float32[np.ndarray, "k h w"]:
        """Low-resolution logits, on the host."""
        side = self.groups[0].logits.shape[1:] if self.groups else (0, 0)
        found = np.zeros((len(self), *side), np.float32)
        for group, mine, rows in self._grouped():
            found[mine] = self.device.get(group.logits)[rows]
        return found

    def _grouped(self) -> list[tuple[_Group, Int[np.ndarray, "m"], Int[np.ndarray, "m"]]]:
        """Each group with masks left: where they are among the K, and which rows they are."""
        places = (np.flatnonzero(self.owners == index) for index in range(len(self.groups)))
        found = zip(self.groups, places, strict=True)
        return [(group, mine, self.rows[mine]) for group, mine in found if len(mine)]


def open_gpu() -> Gpu | None:
    """The device, where there is one that has kernels."""
    try:
        gpu = Gpu()
    except BackendUnavailableError:
        return None
    return gpu if has_kernels(gpu) else None


def has_kernels(gpu: Gpu) -> bool:
    """Whether a device's kernels can be had and are wanted (`SAM_EDGE_KERNELS=off`).

    A compiler that is absent is found out here, not in the midst of a picture.
    """
    if os.environ.get(SWITCH) == "off":
        return False
    try:
        for kernel in (preprocess, mask_kernels, suppression):
            cubin_of(kernel.SOURCE, gpu.target)
    except BackendUnavailableError:
        return False
    return True


def acceleration(gpu: Gpu | None, config: ModelConfig, parts: Parts) -> Any:
    """A runtime's acceleration, or None."""
    return None if gpu is None else GpuAcceleration(gpu, config, parts)
