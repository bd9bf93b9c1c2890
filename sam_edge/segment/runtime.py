"""The contract between a model's graphs and everything that uses a model.

Torch implements it here; ONNX Runtime, OpenVINO and TensorRT in `sam_edge.export`. The predictor, everything mode,
evaluation and bench see nothing else of a model.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sam_edge.models.config import ModelConfig
from sam_edge.models.prompts import Prompts
from sam_edge.models.sam import EdgeSam
from sam_edge.models.vit import split_attention

Embeddings = Any
"""What `encode` returns and `decode` takes; it stays on the runtime's device."""


@runtime_checkable
class Runtime(Protocol):
    """An encoder and a decoder that can be called."""

    name: str
    config: ModelConfig

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Embeddings:
        """Embeddings of B normalised, padded images."""
        ...

    def decode(
        self, embeddings: Embeddings, prompts: Prompts
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Mask logits and predicted IoU of each prompt set, float32 on the CPU or the runtime's device."""
        ...


class TorchRuntime:
    """An `EdgeSam` as it is, in float32; of a quantized one the arithmetic is simulated in float32."""

    def __init__(self, model: EdgeSam, device: str = "cpu") -> None:
        self.name = "torch"
        self.config = model.config
        self.device = torch.device(device)
        self._model = model.to(self.device).eval()
        if model.config.arch == "vit" and model.config.quantization is None:
            # the same function through fused attention: see models.vit
            split_attention(model.image_encoder)
        self._decoder = model.decoder

    @torch.inference_mode()
    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embeddings."""
        return self._model.encode(pixels.to(self.device))

    @torch.inference_mode()
    def decode(
        self, embeddings: Float[Tensor, "b c g g"], prompts: Prompts
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Mask logits and predicted IoU."""
        return self._decoder.decode(embeddings, prompts.to(self.device))


def as_runtime(model: EdgeSam | Runtime) -> Runtime:
    """A model as a torch runtime; a runtime as it is."""
    return TorchRuntime(model) if isinstance(model, EdgeSam) else model
