"""The contract between a model's graphs and everything that uses a model.

ONNX Runtime, OpenVINO and TensorRT implement it in `sam_edge.runtimes`, torch in `sam_edge.models`. The predictor,
everything mode, evaluation and bench see nothing else of a model. It speaks NumPy; what `encode` and `prepare` return
is the runtime's own and stays on its device.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int

from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import Prompts

Embeddings = Any
"""What `encode` returns and `decode` takes."""
State = Any
"""What `prepare` returns: all that depends on one image alone."""


@dataclass(frozen=True)
class Prediction:
    """What is known of N prompt sets about one image before any mask is up-scaled."""

    iou: Float32[np.ndarray, "n 4"]
    """Predicted IoU of each set's four masks."""
    handle: Any
    """What `upscale` needs, on the runtime's device."""


@runtime_checkable
class Runtime(Protocol):
    """An encoder and a decoder that can be called."""

    name: str
    config: ModelConfig

    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Embeddings:
        """Embeddings of B normalised, padded images."""
        ...

    def host(self, embeddings: Embeddings) -> Float32[np.ndarray, "b c g g"]:
        """Embeddings as an array, to compare them with another runtime's."""
        ...

    def decode(
        self, embeddings: Embeddings, prompts: Prompts
    ) -> tuple[Float32[np.ndarray, "b n 4 h w"], Float32[np.ndarray, "b n 4"]]:
        """Mask logits and predicted IoU of each prompt set."""
        ...

    def prepare(self, embeddings: Embeddings) -> State:
        """Everything that depends on ONE image alone (B = 1)."""
        ...

    def predict(self, state: State, prompts: Prompts) -> Prediction:
        """The predicted IoU of N prompt sets (B = 1); `decode` is prepare, predict and upscale in one."""
        ...

    def upscale(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Float32[np.ndarray, "k h w"]:
        """Low-resolution logits of mask `masks[i]` (0 to 3) of set `sets[i]`.

        Sets may repeat, and K may be 0.
        """
        ...


def as_runtime(model: Any) -> Runtime:
    """A runtime as it is; a torch model on its own."""
    return model if isinstance(model, Runtime) else model.runtime()
