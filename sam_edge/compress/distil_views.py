"""Training examples of full-stage distillation: a view, what the teacher made of it, and masks to be prompted for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from sam_edge.compress.fixed_views import extent_px, fingerprint, square
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import CompressionError, DataError
from sam_edge.segment.config import ModelConfig
from sam_edge.training.pictures import Pictures
from sam_edge.training.views import Crop

MIN_CELLS = 6
"""Smallest visible area of a mask, in cells of the student's logits."""


@dataclass(frozen=True)
class DistilView:
    """A view in the student's frame."""

    image: UInt8[np.ndarray, "3 s s"]
    embedding: Float[Tensor, "c g g"]
    """The teacher's."""
    masks: UInt8[np.ndarray, "k m m"]
    """Coverage of each cell of the student's logits, 0 to 255; no masks where none are wanted."""
    boxes: Float[np.ndarray, "k 4"]
    """Tight boxes XYXY, left and top edge, right and bottom edge, in pixels of the view."""
    extent: Float[np.ndarray, "2"]
    """Width and height of what is picture, not padding, in pixels of the view."""


@dataclass(frozen=True)
class DistilBatch:
    """Views stacked."""

    image: UInt8[Tensor, "b 3 s s"]
    embedding: Float[Tensor, "b c g g"]
    masks: UInt8[Tensor, "b k m m"]
    boxes: Float[Tensor, "b k 4"]
    extent: Float[Tensor, "b 2"]


def stack_distil_views(views: list[DistilView]) -> DistilBatch:
    """Views as one batch."""
    names = ("image", "masks", "boxes", "extent")
    image, masks, boxes, extent = (torch.from_numpy(np.stack([getattr(v, name) for v in views])) for name in names)
    return DistilBatch(image, torch.stack([view.embedding for view in views]), masks, boxes, extent)


class StoredViews:
    """The views of a store of embeddings, with the pictures they were made of."""

    def __init__(
        self, store: StoredEmbeddings, pictures: Pictures | Dataset[LabelledImage], student: ModelConfig, prompts: int
    ) -> None:
        """`pictures` with labels give their own masks, others the teacher's; `prompts` 0 leaves masks out.

        Raises:
            CompressionError: the store lacks a picture.
        """
        self.store, self.pictures, self.student, self.prompts = store, pictures, student, prompts
        places = {name: place for place, name in enumerate(store.names)}
        lacking = [name for name in pictures.names if name not in places]
        if lacking:
            raise CompressionError(
                f"{store.folder} lacks {len(lacking)} of the {len(pictures)} pictures, the first is {lacking[0]}: "
                "embed these pictures to another folder."
            )
        self._places = [places[name] for name in pictures.names]

    def view(self, picture: int, view: int, rng: np.random.Generator) -> DistilView | None:
        """View `view` of picture number `picture`; `rng` chooses the masks. None where nothing can be prompted for.

        Raises:
            DataError: an unreadable picture. CompressionError: not the picture that the teacher has seen.
        """
        item = self.pictures[picture]
        image = item.image if isinstance(item, LabelledImage) else item[1]
        name, size = self.pictures.names[picture], self.student.image_size
        stored = self.store.view(self._places[picture], view)
        if stored is None:
            return None
        crop = self.store.options.fixed_views.crop(name, view, *image.shape[:2])
        if not np.array_equal(fingerprint(crop, image), stored.fingerprint):
            raise CompressionError(f"{name} has changed since its embedding was stored: embed again.")
        masks: list[np.ndarray] = []
        boxes: list[np.ndarray] = []
        if self.prompts:
            if isinstance(item, LabelledImage):
                masks, boxes = self._labelled(item, crop, rng)
            else:
                masks = self._of_teacher(stored.masks, rng)
                boxes = [self._box(mask) for mask in masks]
            if not masks:
                return None
        return DistilView(
            image=square(crop, image, size, self.student.pixel_mean),
            embedding=stored.embedding,
            masks=np.array(masks, np.uint8).reshape(-1, self.student.mask_size, self.student.mask_size),
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            extent=np.array(extent_px(crop, size), np.float32),
        )

    def _labelled(
        self, sample: LabelledImage, crop: Crop, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Masks and their boxes: the label's own where all of it is in view, as it will be prompted by."""
        masks: list[np.ndarray] = []
        boxes: list[np.ndarray] = []
        shown = [annotation for annotation in sample.annotations if crop.shows(annotation)]
        for index in rng.permutation(len(shown)):
            if len(masks) == self.prompts:
                break
            cells = crop.cells(shown[index], self.student.mask_size)
            if np.count_nonzero(cells > 127) >= MIN_CELLS:
                box = crop.box(shown[index], self.student.image_size)
                masks.append(cells)
                boxes.append(self._box(cells) if box is None else box)
        return masks, boxes

    def _of_teacher(self, masks: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        side = self.student.mask_size
        found = [
            cv2.resize(mask.astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_AREA)
            for mask in masks[rng.permutation(len(masks))[: self.prompts]]
        ]
        return [mask for mask in found if np.count_nonzero(mask > 127) >= MIN_CELLS]

    def _box(self, mask: np.ndarray) -> np.ndarray:
        """Edges of the mask's cells."""
        x, y, width, height = cv2.boundingRect((mask > 127).astype(np.uint8))
        cell = self.student.image_size / self.student.mask_size
        return np.array([x, y, x + width, y + height], np.float32) * np.float32(cell)


def repeated(view: DistilView, prompts: int, rng: np.random.Generator) -> DistilView:
    """The view with `prompts` masks, some of them again where it has fewer."""
    if not prompts:
        return view
    extra = rng.integers(0, len(view.masks), max(prompts - len(view.masks), 0))
    chosen = np.concatenate([np.arange(len(view.masks)), extra])
    return replace(view, masks=view.masks[chosen], boxes=view.boxes[chosen])


class DistilStream(TorchDataset[DistilView]):
    """Endless: example i is the i-th view of its epoch's shuffle, with masks chosen anew; a function of i alone."""

    def __init__(self, views: StoredViews, indices: Sequence[int], seed: int) -> None:
        per_picture = views.store.options.views
        self.items = [(picture, view) for picture in indices for view in range(per_picture)]
        self.views, self.seed = views, seed
        if not self.items:
            raise DataError("no picture to train on: check --images.")

    def __getitem__(self, index: int) -> DistilView:
        """The example number `index`; a view that cannot be used is passed over for the next one."""
        epoch, position = divmod(index, len(self.items))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        rng = np.random.default_rng([self.seed, epoch, position])
        for offset in range(len(order)):
            picture, view = self.items[int(order[(position + offset) % len(order)])]
            try:
                found = self.views.view(picture, view, rng)
            except DataError:
                continue
            if found is not None:
                return repeated(found, self.views.prompts, rng)
        raise DataError(
            "no view has a mask to prompt for: give labelled pictures, or embed with more --mask-points and a "
            "teacher whose thresholds fit it."
        )
