"""What runtimes of exported graphs have in common: a SAM's five graphs, called by name with named arrays."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from sam_edge.errors import ExportError, SamEdgeError
from sam_edge.kernels.gpu import DeviceArray
from sam_edge.runtimes.folder import ExportedFolder
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.cost import Cost
from sam_edge.segment.prompts import Prompts, in_parts
from sam_edge.segment.runtime import Prediction

Values = Mapping[str, Any]
"""Named arrays: NumPy's, or a device's own."""
CACHED_SETS = 4
"""Prompt sets in one call on a CPU: few enough for its cache."""


class GraphRuntime(ABC):
    """The runtime contract over `_run`, which takes and gives arrays where the runtime keeps them.

    What is given to it may be NumPy's or its own; what it gives is its own, and `_host` brings that to NumPy.
    """

    name: str
    sets_at_once = CACHED_SETS
    """Prompt sets in one call of a graph."""
    keeps_arrays = True
    """Whether what `_run` gives are NumPy arrays, of which rows can be picked."""

    def __init__(self, folder: ExportedFolder) -> None:
        self.folder = folder
        self.config: ModelConfig = folder.config

    @property
    def cost(self) -> Cost | None:
        """Parameters and MACs, as the export counted them."""
        return self.folder.cost

    @property
    def transfers(self) -> tuple[Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]] | None:
        """Copies of an array to the device and of what lies there back, to be timed; None on the CPU."""
        gpu = getattr(self, "_gpu", None)
        return None if gpu is None else (gpu.put, gpu.get)

    @abstractmethod
    def _run(self, graph: str, inputs: Values) -> Values:
        """The outputs of one graph, by name."""

    def _called(self, graph: str, inputs: Values) -> Values:
        """`_run`, whose libraries say what is wrong with a graph in errors of all kinds, without a common class.

        Raises:
            ExportError: a graph that cannot be opened, or called with this.
        """
        try:
            return _Answers(self._run(graph, inputs))
        except (SamEdgeError, AssertionError):
            # what sam-edge asserts is about sam-edge
            raise
        except Exception as error:
            # a manifest's mistakes fail in lines of sam-edge, too
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ExportError(
                f"the {graph} of {self.folder.path} does not run in {self.name} ({reason}): export it again."
            ) from error

    def _check_answers(self, graph: str, got: Sequence[int], wanted: Sequence[int]) -> None:
        """Raises ExportError for other than one answer a prompt set: OpenVINO goes on with nothing where an operator
        fails."""
        if tuple(got) != tuple(wanted):
            raise ExportError(
                f"the {graph} of {self.folder.path} answers {tuple(got)} in {self.name} where {tuple(wanted)} were "
                "asked: export it again."
            )

    def _host(self, value: Any) -> np.ndarray:
        """A value as a NumPy array."""
        return np.asarray(value)

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"] | DeviceArray) -> Any:
        """Image embeddings."""
        given = pixels if isinstance(pixels, DeviceArray) else np.asarray(pixels, np.float32)
        return self._called("encoder", {"pixels": given})["embeddings"]

    def host(self, embeddings: Any) -> Float32[np.ndarray, "b c g g"]:
        """Embeddings as an array, to compare them with another runtime's."""
        return self._host(embeddings)

    def decode(
        self, embeddings: Any, prompts: Prompts
    ) -> tuple[Float32[np.ndarray, "b n 4 h w"], Float32[np.ndarray, "b n 4"]]:
        """Mask logits and predicted IoU, a few sets at a time."""
        found = []
        for first in range(0, prompts.labels.shape[1], self.sets_at_once):
            part = prompts.part(slice(first, first + self.sets_at_once))
            given = self._called("decoder", {"embeddings": embeddings, **decoder_inputs(self.config, part)})
            found.append((self._host(given["logits"]), self._host(given["iou"])))
            for value in found[-1]:
                self._check_answers("decoder", value.shape[:3], (*part.labels.shape[:2], 4))
        if not found:
            batch, side = prompts.labels.shape[0], self.config.mask_size
            return np.zeros((batch, 0, 4, side, side), np.float32), np.zeros((batch, 0, 4), np.float32)
        logits, iou = (values[0] if len(values) == 1 else np.concat(values, 1) for values in zip(*found, strict=True))
        return logits, iou

    def prepare(self, embeddings: Any) -> Values:
        """What one image's prompts share.

        Raises:
            ExportError: a folder that was exported before it had these graphs.
        """
        self.folder.require_split()
        return {"embeddings": embeddings, **self._called("prepare", {"embeddings": embeddings})}

    def predict(self, state: Values, prompts: Prompts) -> Prediction:
        """Predicted IoU of N prompt sets; what the parts do not answer (`in_parts`) goes through the whole decoder."""
        if not in_parts(prompts, self.config.decoder):
            logits, iou = self.decode(state["embeddings"], prompts)
            return Prediction(iou[0], logits[0])
        image = self._of("predict", state)
        coords, labels = np.asarray(prompts.coords, np.float32), np.asarray(prompts.labels, np.int64)
        bands: list[Values] = []
        for first in range(0, labels.shape[1], self.sets_at_once):
            sets = slice(first, first + self.sets_at_once)
            given = {
                "point_coords": np.ascontiguousarray(coords[:, sets]),
                "point_labels": np.ascontiguousarray(labels[:, sets]),
            }
            bands.append(self._called("predict", {**image, **given}))
        found = [self._host(band["iou"]) for band in bands]
        self._check_answers("predict", (sum(map(len, found)),), labels.shape[1:2])
        return Prediction(np.concat(found) if found else np.zeros((0, 4), np.float32), (state, bands))

    def upscale(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Float32[np.ndarray, "k h w"]:
        """Low-resolution logits of some masks; each set among them is up-scaled once."""
        if isinstance(prediction.handle, np.ndarray):
            return prediction.handle[sets, masks]
        logits = np.empty((len(sets), self.config.mask_size, self.config.mask_size), np.float32)
        for here, part in self._upscaled(prediction, sets, masks):
            logits[here] = self._host(part)
        return logits

    def _upscaled(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Iterator[tuple[Int[np.ndarray, "m"], Any]]:
        """Places among the masks, and their logits where the runtime leaves them, of each call that it takes."""
        state, bands = prediction.handle
        image = self._of("upscale", state)
        for members, parts in self._groups(bands, np.unique(sets)):
            found = np.flatnonzero(np.isin(sets, members))
            # engines are built for each set's four masks once, and no more
            for first in range(0, len(found), 4 * len(members)):
                here = found[first : first + 4 * len(members)]
                places, wanted = np.searchsorted(members, sets[here]), np.asarray(masks)[here].astype(np.int64)
                yield here, self._called("upscale", {**image, **parts, "places": places, "masks": wanted})["logits"]

    def _groups(
        self, bands: Sequence[Values], wanted: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[Int[np.ndarray, "members"], Values]]:
        """Sets in rising order and their parts, a call's worth at a time, until all `wanted` have come."""
        names = self._inputs("upscale")
        if self.keeps_arrays:
            for first in range(0, len(wanted), self.sets_at_once):
                members = wanted[first : first + self.sets_at_once]
                yield members, rows_of(bands, self.sets_at_once, members, names)
            return
        # rows cannot be picked without a copy to the host: a band is up-scaled whole
        for index in np.unique(wanted // self.sets_at_once):
            parts = {name: value for name, value in bands[index].items() if name in names}
            yield index * self.sets_at_once + np.arange(self.sets_at_once), parts

    def _inputs(self, graph: str) -> Sequence[str]:
        return tuple(self.folder.graphs[graph]["inputs"])

    def _of(self, graph: str, state: Values) -> Values:
        """What a graph takes of an image's parts."""
        return {name: state[name] for name in self._inputs(graph) if name in state}


def rows_of(bands: Sequence[Values], sets_at_once: int, sets: Int[np.ndarray, "n"], names: Sequence[str]) -> Values:
    """The sets' entries of what `predict` gave in bands of `sets_at_once`, as far as it is among `names`."""
    wanted = [name for name in bands[0] if name in names]
    return {
        name: np.stack([bands[index // sets_at_once][name][index % sets_at_once] for index in sets]) for name in wanted
    }


def decoder_inputs(config: ModelConfig, prompts: Prompts) -> dict[str, np.ndarray]:
    """The decoder graph's prompt inputs, by name."""
    batch, sets = prompts.labels.shape[:2]
    if prompts.masks is None:
        masks = np.zeros((batch, sets, 1, config.mask_size, config.mask_size), np.float32)
    else:
        masks = np.ascontiguousarray(prompts.masks, np.float32)
    return {
        "point_coords": np.ascontiguousarray(prompts.coords, np.float32),
        "point_labels": np.ascontiguousarray(prompts.labels, np.int64),
        "mask_input": masks,
        "has_mask_input": np.full((batch, sets), prompts.masks is not None, np.float32),
    }


class _Answers(dict[str, Any]):
    """What a graph has answered, by the names that model.json has for it."""

    def __missing__(self, name: str) -> Any:
        raise ExportError(f"model.json names no output {name} of a graph: export it again.")
