"""The decoder in three parts, for one image and many prompts: once per image, per prompt, per mask that is wanted.

Each part takes and gives named tensors, so that it can be a graph of its own.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sam_edge.models.decoder import ImageState, PromptableDecoder
from sam_edge.models.drawn_prompts import drawn_clicks

Parts = dict[str, Tensor]
"""Named tensors that one part hands to the next."""


@runtime_checkable
class SplitDecoder(Protocol):
    """What the two forms of the split have in common; `decode` of one image is their composition."""

    def prepare(self, embeddings: Float[Tensor, "1 c gh gw"]) -> tuple[Parts, Parts]:
        """What depends on the image alone: what `predict` needs of it, and what `upscale` does."""
        ...

    def predict(
        self, image: Parts, coords: Float[Tensor, "1 n p 2"], labels: Int[Tensor, "1 n p"]
    ) -> tuple[Float[Tensor, "n 4"], Parts]:
        """Predicted IoU of each set's masks, and what `upscale` needs of the sets (first axis)."""
        ...

    def upscale(self, image: Parts, sets: Parts) -> Float[Tensor, "n 4 h w"]:
        """Low-resolution logits of each set's four masks."""
        ...


class PlainSplit(nn.Module):
    """The plain walk, but for the first layer's projections of the image, which all prompts without a mask share.

    Every layer sees exactly what it sees in the whole decoder, which quantized layers and halves need. Where clicks are
    drawn, every point brings a mask, and nothing is shared.
    """

    def __init__(self, decoder: PromptableDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.shares = drawn_clicks(decoder.prompt_encoder) is None

    def prepare(self, embeddings: Float[Tensor, "1 c gh gw"]) -> tuple[Parts, Parts]:
        """Tokens and positions of the image, and the first layer's projections of them."""
        state = self.decoder.prepare(embeddings)
        if not self.shares:
            return {"tokens": state.tokens, "positions": state.positions}, {}
        state = self.decoder.share(state)
        assert state.first is not None
        names = ("first_keys", "first_values", "first_queries")
        return {"tokens": state.tokens, "positions": state.positions, **dict(zip(names, state.first, strict=True))}, {}

    def predict(
        self,
        image: Parts,
        coords: Float[Tensor, "1 n p 2"],
        labels: Int[Tensor, "1 n p"],
        masks: Float[Tensor, "1 n 1 h w"] | None = None,
    ) -> tuple[Float[Tensor, "n 4"], Parts]:
        """Predicted IoU, mask tokens and the image tokens of each set."""
        first = (image["first_keys"], image["first_values"], image["first_queries"]) if self.shares else None
        state = ImageState(image["tokens"], image["positions"], first)
        mask_tokens, iou, image_tokens = self.decoder.predict(state, coords, labels, masks)
        return iou[0], {"mask_tokens": mask_tokens[0], "image_tokens": image_tokens[0]}

    def upscale(self, image: Parts, sets: Parts) -> Float[Tensor, "n 4 h w"]:
        """The whole decoder's."""
        return self.decoder.upscale(sets["mask_tokens"][None], sets["image_tokens"][None])[0]


def wanted_masks(
    split: SplitDecoder, image: Parts, sets: Parts, places: Int[Tensor, "k"], masks: Int[Tensor, "k"]
) -> Float[Tensor, "k h w"]:
    """Logits of mask `masks[i]` of the set at `places[i]` of `sets`."""
    logits = split.upscale(image, sets)
    return logits.flatten(0, 1).index_select(0, 4 * places + masks)


def cut(sets: Parts, wanted: Int[Tensor, "k"]) -> tuple[Parts, Int[Tensor, "k"]]:
    """The distinct sets among `wanted`, and where each of `wanted` lies among them."""
    distinct, places = torch.unique(wanted, return_inverse=True)
    return {name: value.index_select(0, distinct) for name, value in sets.items()}, places
