"""The original encoder's embeddings: computed once per view and kept on disk in half precision, within a budget.

A view costs C x g x g x 2 bytes (2 MB for SAM at 1024 pixels), read in a fraction of a millisecond, against a forward
pass of the teacher. Inner features are two orders of magnitude larger (0.5 GB per view of SAM-B's bottlenecks) and
are wanted in the first N epochs only: reading them back would be slower than computing them, so they never are kept.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sam_edge.models.sam import EdgeSam


class EmbeddingStore:
    """Embeddings by the number of their view, in a sparse file and a file of marks; each process writes its own.

    What does not fit into the budget is never kept. Values pass through float16 whether kept or not, so that a
    resumed run sees what the killed one saw.
    """

    def __init__(self, folder: Path | None, views: int, shape: tuple[int, ...], budget_bytes: int) -> None:
        self.shape = shape
        self.bytes_per_view = 2 * int(np.prod(shape))
        self.slots = 0 if folder is None else min(views, budget_bytes // self.bytes_per_view)
        if folder is not None and self.slots:
            folder.mkdir(parents=True, exist_ok=True)
            self._values = _mapped(folder / "embeddings.f16", np.float16, (self.slots, *shape))
            self._marks = _mapped(folder / "kept.u8", np.uint8, (self.slots,))

    def has(self, views: Int[Tensor, "b"]) -> bool:
        """Whether every one of the views is kept."""
        return all(self._kept(view) for view in views.tolist())

    def filled(self, views: Int[Tensor, "b"], computed: Float[Tensor, "b c g g"] | None) -> Float[Tensor, "b c g g"]:
        """The views' embeddings: kept ones as they are, the others from `computed`, which are then kept too."""
        numbers = views.tolist()
        values = np.empty((len(numbers), *self.shape), np.float16) if computed is None else _half(computed)
        for position, view in enumerate(numbers):
            if self._kept(view):
                values[position] = self._values[view]
            elif view < self.slots:
                self._values[view] = values[position]
                # after the values: a kill in between leaves the view to be computed again
                self._marks[view] = 1
        return torch.from_numpy(values).float()

    def _kept(self, view: int) -> bool:
        return view < self.slots and bool(self._marks[view])


class Teacher:
    """The original model, asked for the embedding of numbered views."""

    def __init__(self, model: EdgeSam, store: EmbeddingStore) -> None:
        self.model = model.requires_grad_(False).eval()
        self.store = store
        self.passes = 0
        """Batches that the model had to encode."""

    @torch.no_grad()
    def embedding(self, views: Int[Tensor, "b"], pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """What the teacher makes of the views; nothing is computed for those that are kept."""
        computed = None if self.store.has(views) else self.encode(pixels)
        return self.store.filled(views, computed).to(pixels.device)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """A forward pass."""
        self.passes += 1
        return self.model.encode(pixels)


def _half(computed: Tensor) -> np.ndarray:
    return computed.detach().float().clamp(-65504, 65504).half().cpu().numpy()


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A file of zeros, mapped; what is there already is kept. Blocks never written take no space."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as file:
        # never made shorter: another process of the run may have mapped it
        if file.tell() < size:
            file.truncate(size)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)
