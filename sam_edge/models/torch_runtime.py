"""Torch as a runtime: an `EdgeSam` behind the contract of `sam_edge.segment.runtime`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from sam_edge.errors import BackendUnavailableError
from sam_edge.models.cost import cost
from sam_edge.models.factored import FactoredDecoder, can_factor, pays
from sam_edge.models.prompts import on_device
from sam_edge.models.sam import EdgeSam
from sam_edge.models.split import Parts, PlainSplit, SplitDecoder, cut, wanted_masks
from sam_edge.models.vit import split_attention
from sam_edge.segment.cost import Cost
from sam_edge.segment.prompts import Prompts, in_parts
from sam_edge.segment.runtime import Prediction


class TorchRuntime:
    """An `EdgeSam` as it is, in float32; of a quantized one the arithmetic is simulated in float32.

    Embeddings are tensors, 1 x C x g x g, on the model's device.
    """

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

    @property
    def cost(self) -> Cost:
        """Parameters and MACs."""
        return cost(self.config.replace(quantization=None))

    def synchronise(self) -> None:
        """Wait for everything enqueued on a GPU."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    @property
    def transfers(self) -> tuple[Callable[[np.ndarray], Tensor], Callable[[Tensor], np.ndarray]] | None:
        """Copies of an array to the device and of what lies there back, to be timed; None on the CPU."""
        if self.device.type == "cpu":
            return None
        return lambda array: torch.as_tensor(array, device=self.device), to_numpy

    @torch.inference_mode()
    def encode(self, pixels: Float32[np.ndarray, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Image embeddings."""
        return self._model.encode(torch.as_tensor(pixels, device=self.device))

    @torch.inference_mode()
    def decode(
        self, embeddings: Float[Tensor, "b c g g"], prompts: Prompts
    ) -> tuple[Float32[np.ndarray, "b n 4 h w"], Float32[np.ndarray, "b n 4"]]:
        """Mask logits and predicted IoU."""
        logits, iou = self._decoder.decode(embeddings, on_device(prompts, self.device))
        return to_numpy(logits), to_numpy(iou)

    def host(self, embeddings: Float[Tensor, "b c g g"]) -> Float32[np.ndarray, "b c g g"]:
        """Embeddings as an array, to compare them with another runtime's."""
        return to_numpy(embeddings)

    @torch.inference_mode()
    def prepare(self, embeddings: Float[Tensor, "1 c g g"]) -> "_Image":
        """What one image's prompts share; made when the first prompt shows in which form."""
        return _Image(embeddings)

    @torch.inference_mode()
    def predict(self, state: "_Image", prompts: Prompts) -> Prediction:
        """Predicted IoU of N prompt sets: by factors where that is exact and pays, else by the plain walk."""
        given = on_device(prompts, self.device)
        exact = in_parts(given, self.config.decoder)
        if exact and self._factored is not None and pays(self._decoder, given.labels.shape[2]):
            image, upscaling = state.parts(self._factored)
            iou, sets = self._factored.predict(image, given.coords, given.labels)
            return Prediction(to_numpy(iou), (self._factored, upscaling, sets))
        image, upscaling = state.parts(self._plain)
        iou, sets = self._plain.predict(image, given.coords, given.labels, given.masks)
        return Prediction(to_numpy(iou), (self._plain, upscaling, sets))

    @torch.inference_mode()
    def upscale(
        self, prediction: Prediction, sets: Int[np.ndarray, "k"], masks: Int[np.ndarray, "k"]
    ) -> Float32[np.ndarray, "k h w"]:
        """Low-resolution logits of some masks; each set among them is up-scaled once."""
        if not len(sets):
            return np.zeros((0, self.config.mask_size, self.config.mask_size), np.float32)
        split, image, parts = prediction.handle
        wanted, which = (torch.as_tensor(part, device=self.device) for part in (sets, masks))
        needed, places = cut(parts, wanted)
        return to_numpy(wanted_masks(split, image, needed, places, which))


def resolve_device(device: str) -> str:
    """`auto` as `cuda` where torch finds a CUDA device, else `cpu`; the others as they are.

    Raises:
        BackendUnavailableError: an unknown device, or `cuda` on a machine without one.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BackendUnavailableError(f"device must be one of auto, cpu, cuda, got {device!r}.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError("device cuda was asked for, but torch finds no CUDA device: use --device cpu.")
    return device


def to_numpy(value: Any) -> Float32[np.ndarray, "..."]:
    """A tensor in host memory."""
    return value.float().cpu().numpy()


class _Image:
    """One image's embeddings and, once made, what each form of the split decoder keeps of them."""

    def __init__(self, embeddings: Float[Tensor, "1 c g g"]) -> None:
        self._embeddings = embeddings
        self._parts: dict[SplitDecoder, tuple[Parts, Parts]] = {}

    def parts(self, split: SplitDecoder) -> tuple[Parts, Parts]:
        if split not in self._parts:
            self._parts[split] = split.prepare(self._embeddings)
        return self._parts[split]
