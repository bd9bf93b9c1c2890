"""Everything mode's three graphs as ONNX Runtime and OpenVINO run them: numpy arrays by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sam_edge.errors import ExportError
from sam_edge.models.config import ModelConfig
from sam_edge.models.drawn_prompts import in_parts
from sam_edge.models.prompts import Prompts
from sam_edge.segment.runtime import Prediction

if TYPE_CHECKING:
    from sam_edge.export.onnx_runtime import ExportedFolder

SPLIT = ("prepare", "predict", "upscale")
"""Their names."""
SETS_AT_ONCE = 4
"""Prompt sets in one call of a graph: few enough for a CPU's cache."""

Arrays = Mapping[str, np.ndarray]


class SplitGraphs(ABC):
    """The split half of the runtime contract, over `_run`."""

    folder: "ExportedFolder"
    config: ModelConfig

    @abstractmethod
    def _run(self, graph: str, inputs: Arrays) -> Arrays:
        """The outputs of one graph, by name."""

    @abstractmethod
    def decode(self, embeddings: Any, prompts: Prompts) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """The whole decoder's graph."""

    def prepare(self, embeddings: Float[np.ndarray, "1 c g g"]) -> Arrays:
        """What one image's prompts share.

        Raises:
            ExportError: a folder that was exported before it had these graphs.
        """
        require_split(self.folder)
        return {"embeddings": embeddings, **self._run("prepare", {"embeddings": embeddings})}

    def predict(self, state: Arrays, prompts: Prompts) -> Prediction:
        """Predicted IoU of N prompt sets; what the parts do not answer (`in_parts`) goes through the whole decoder."""
        if not in_parts(prompts, self.config.decoder):
            logits, iou = self.decode(state["embeddings"], prompts)
            return Prediction(iou[0], logits[0])
        image = self._of("predict", state)
        coords, labels = prompts.coords.float().cpu().numpy(), prompts.labels.cpu().numpy().astype(np.int64)
        bands: list[Arrays] = []
        for first in range(0, labels.shape[1], SETS_AT_ONCE):
            sets = slice(first, first + SETS_AT_ONCE)
            given = {"point_coords": coords[:, sets], "point_labels": labels[:, sets]}
            bands.append(self._run("predict", {**image, **given}))
        found = np.concatenate([band["iou"] for band in bands]) if bands else np.zeros((0, 4), np.float32)
        return Prediction(torch.from_numpy(found), (state, bands))

    def upscale(
        self, prediction: Prediction, sets: Int[Tensor, "k"], masks: Int[Tensor, "k"]
    ) -> Float[Tensor, "k h w"]:
        """Low-resolution logits of some masks; each set among them is up-scaled once."""
        if isinstance(prediction.handle, Tensor):
            return prediction.handle[sets, masks]
        state, bands = prediction.handle
        distinct, places = np.unique(sets.cpu().numpy(), return_inverse=True)
        logits = np.empty((len(places), self.config.mask_size, self.config.mask_size), np.float32)
        image = self._of("upscale", state)
        for first in range(0, len(distinct), SETS_AT_ONCE):
            here = np.flatnonzero((places >= first) & (places < first + SETS_AT_ONCE))
            given = {
                **image,
                **rows_of(bands, distinct[first : first + SETS_AT_ONCE], self._inputs("upscale")),
                "places": places[here] - first,
                "masks": masks.cpu().numpy()[here].astype(np.int64),
            }
            logits[here] = self._run("upscale", given)["logits"]
        return torch.from_numpy(logits)

    def _inputs(self, graph: str) -> Sequence[str]:
        return tuple(self.folder.graphs[graph]["inputs"])

    def _of(self, graph: str, state: Arrays) -> Arrays:
        """What a graph takes of an image's parts."""
        return {name: state[name] for name in self._inputs(graph) if name in state}


def rows_of(bands: Sequence[Arrays], sets: Int[np.ndarray, "n"], names: Sequence[str]) -> Arrays:
    """The sets' entries of what `predict` gave in bands, as far as it is among `names`."""
    wanted = [name for name in bands[0] if name in names]
    return {
        name: np.stack([bands[index // SETS_AT_ONCE][name][index % SETS_AT_ONCE] for index in sets]) for name in wanted
    }


def require_split(folder: "ExportedFolder") -> None:
    """Raises ExportError for a folder without the split decoder's graphs."""
    missing = [name for name in SPLIT if name not in folder.graphs]
    if missing:
        raise ExportError(
            f"{folder.path} has no {missing[0]}.onnx, which everything mode needs: it was exported by an earlier "
            "version, export again."
        )
