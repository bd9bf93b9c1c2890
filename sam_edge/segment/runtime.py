"""The contract between a model's graphs and everything that uses a model.

Torch implements it here; ONNX Runtime, OpenVINO and TensorRT in `sam_edge.export`. The predictor, everything mode,
evaluation and bench see nothing else of a model.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sam_edge.models.config import ModelConfig
from sam_edge.models.drawn_prompts import in_parts
from sam_edge.models.factored import FactoredDecoder, can_factor, pays
from sam_edge.models.prompts import Prompts
from sam_edge.models.sam import EdgeSam
from sam_edge.models.split import Parts, PlainSplit, SplitDecoder, cut, wanted_masks
from sam_edge.models.vit import split_attention

Embeddings = Any
"""What `encode` returns and `decode` takes; it stays on the runtime's device."""
State = Any
"""What `prepare` returns: all that depends on one image alone, on the runtime's device."""


@dataclass(frozen=True)
class Prediction:
    """What is known of N prompt sets about one image before any mask is up-scaled."""

    iou: Float[Tensor, "n 4"]
    """Predicted IoU of each set's four masks, float32 on the CPU."""
    handle: Any
    """What `upscale` needs, on the runtime's device."""


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

    def prepare(self, embeddings: Embeddings) -> State:
        """Everything that depends on ONE image alone (B = 1)."""
        ...

    def predict(self, state: State, prompts: Prompts) -> Prediction:
        """The predicted IoU of N prompt sets (B = 1); `decode` is prepare, predict and upscale in one."""
        ...

    def upscale(
        self, prediction: Prediction, sets: Int[Tensor, "k"], masks: Int[Tensor, "k"]
    ) -> Float[Tensor, "k h w"]:
        """Low-resolution logits of mask `masks[i]` (0 to 3) of set `sets[i]`, float32 on the CPU.

        Sets may repeat, and K may be 0.
        """
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
        self._plain = PlainSplit(self._decoder)
        one_by_one = self.device.type == "cpu"
        self._factored = FactoredDecoder(self._decoder, one_by_one) if can_factor(self._decoder) else None

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

    @torch.inference_mode()
    def prepare(self, embeddings: Float[Tensor, "1 c g g"]) -> State:
        """What one image's prompts share; made when the first prompt shows in which form."""
        return _Image(embeddings)

    @torch.inference_mode()
    def predict(self, state: State, prompts: Prompts) -> Prediction:
        """Predicted IoU of N prompt sets: by factors where that is exact and pays, else by the plain walk."""
        given = prompts.to(self.device)
        exact = in_parts(given, self.config.decoder)
        if exact and self._factored is not None and pays(self._decoder, given.labels.shape[2]):
            image, upscaling = state.parts(self._factored)
            iou, sets = self._factored.predict(image, given.coords, given.labels)
            return Prediction(iou.float().cpu(), (self._factored, upscaling, sets))
        image, upscaling = state.parts(self._plain)
        iou, sets = self._plain.predict(image, given.coords, given.labels, given.masks)
        return Prediction(iou.float().cpu(), (self._plain, upscaling, sets))

    @torch.inference_mode()
    def upscale(
        self, prediction: Prediction, sets: Int[Tensor, "k"], masks: Int[Tensor, "k"]
    ) -> Float[Tensor, "k h w"]:
        """Low-resolution logits of some masks; each set among them is up-scaled once."""
        if not len(sets):
            return torch.zeros(0, self.config.mask_size, self.config.mask_size)
        split, image, parts = prediction.handle
        needed, places = cut(parts, sets.to(self.device))
        return wanted_masks(split, image, needed, places, masks.to(self.device)).float().cpu()


class _Image:
    """One image's embeddings and, once made, what each form of the split decoder keeps of them."""

    def __init__(self, embeddings: Float[Tensor, "1 c g g"]) -> None:
        self._embeddings = embeddings
        self._parts: dict[SplitDecoder, tuple[Parts, Parts]] = {}

    def parts(self, split: SplitDecoder) -> tuple[Parts, Parts]:
        if split not in self._parts:
            self._parts[split] = split.prepare(self._embeddings)
        return self._parts[split]


def as_runtime(model: EdgeSam | Runtime) -> Runtime:
    """A model as a torch runtime; a runtime as it is."""
    return TorchRuntime(model) if isinstance(model, EdgeSam) else model
