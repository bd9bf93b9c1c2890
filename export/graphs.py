"""The graphs of a SAM as modules with plain tensors in and out: what every exporter writes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from sam_edge.models.factored import FactoredDecoder, can_factor
from sam_edge.models.sam import EdgeSam
from sam_edge.models.split import PlainSplit, SplitDecoder, wanted_masks
from sam_edge.models.vit import swap_modules
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.prompts import NOT_A_POINT


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its module, an example of its inputs, their names, and which axes are free."""

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]
    """Per input that has any: axis -> name of the free size."""


class EncoderGraph(nn.Module):
    """pixels B x 3 x S x S (normalised, padded) -> embeddings B x C x g x g, float32 at both ends."""

    def __init__(self, model: EdgeSam, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = model.image_encoder
        self.dtype = dtype

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c g g"]:
        """Encode."""
        return self.encoder(pixels.to(self.dtype)).float()


class DecoderGraph(nn.Module):
    """Embeddings and prompts -> mask logits and predicted IoU, float32 at both ends."""

    def __init__(self, model: EdgeSam, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.dtype = dtype

    def forward(
        self,
        embeddings: Float[Tensor, "b c g g"],
        point_coords: Float[Tensor, "b n p 2"],
        point_labels: Int[Tensor, "b n p"],
        mask_input: Float[Tensor, "b n 1 h w"],
        has_mask_input: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b n 4 h w"], Float[Tensor, "b n 4"]]:
        """Decode; `has_mask_input` is 1 where a set's `mask_input` is to be used."""
        logits, iou = self.decoder(
            embeddings.to(self.dtype),
            point_coords,
            point_labels,
            mask_input.to(self.dtype),
            has_mask_input.to(self.dtype),
        )
        return logits.float(), iou.float()


class PrepareGraph(nn.Module):
    """Embeddings of one image, in float32 -> what `predict` and `upscale` need of it."""

    def __init__(self, split: SplitDecoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.split = split
        self.dtype = dtype

    def forward(self, embeddings: Float[Tensor, "1 c g g"]) -> tuple[Tensor, ...]:
        """Prepare."""
        for_predict, for_upscale = self.split.prepare(embeddings.to(self.dtype))
        return (*for_predict.values(), *for_upscale.values())


class PredictGraph(nn.Module):
    """An image's parts and prompts without masks -> predicted IoU in float32, and parts of each set."""

    def __init__(self, split: SplitDecoder, names: Sequence[str]) -> None:
        """`names` are those of the image's parts."""
        super().__init__()
        self.split = split
        self.names = names

    def forward(
        self, point_coords: Float[Tensor, "1 n p 2"], point_labels: Int[Tensor, "1 n p"], *parts: Tensor
    ) -> tuple[Tensor, ...]:
        """Predict."""
        iou, sets = self.split.predict(dict(zip(self.names, parts, strict=True)), point_coords, point_labels)
        return (iou.float(), *sets.values())


class UpscaleGraph(nn.Module):
    """Parts of some sets (and of the image) -> logits of mask `masks[i]` of the set at `places[i]`, in float32."""

    def __init__(self, split: SplitDecoder, image: Sequence[str], sets: Sequence[str]) -> None:
        """`image` and `sets` are the names of parts, in the order in which they come."""
        super().__init__()
        self.split = split
        self.image, self.sets = image, sets

    def forward(self, places: Int[Tensor, "k"], masks: Int[Tensor, "k"], *parts: Tensor) -> Float[Tensor, "k h w"]:
        """Up-scale."""
        image = dict(zip(self.image, parts, strict=False))
        sets = dict(zip(self.sets, parts[len(self.image) :], strict=True))
        return wanted_masks(self.split, image, sets, places, masks).float()


class Float32Norm(nn.Module):
    """segment-anything's channel norm in float32: it squares, and halves end at 65504."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over channels."""
        return self.norm(x.float()).to(x.dtype)


def to_half(model: EdgeSam) -> EdgeSam:
    """Turn a model's weights to float16 in place, but for what halves cannot hold."""
    frequencies = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    model.half()
    # sines of coordinates times frequencies: in halves the phase itself would be off
    model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix = frequencies
    swap_modules(model, lambda module: isinstance(module, LayerNorm2d), Float32Norm)
    return model


def graphs(model: EdgeSam, dtype: torch.dtype = torch.float32) -> tuple[GraphSpec, ...]:
    """The encoder's, the decoder's and the split decoder's graphs, computing in `dtype`."""
    config = model.config
    decoder = GraphSpec(
        name="decoder",
        module=DecoderGraph(model, dtype).eval(),
        example=decoder_example(config, batch=2, sets=3, points=4),
        inputs=("embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"),
        outputs=("logits", "iou"),
        dynamic={
            "embeddings": {0: "batch"},
            "point_coords": {0: "batch", 1: "sets", 2: "points"},
            "point_labels": {0: "batch", 1: "sets", 2: "points"},
            "mask_input": {0: "batch", 1: "sets"},
            "has_mask_input": {0: "batch", 1: "sets"},
        },
    )
    return encoder_graph(model, dtype), decoder, *split_graphs(model, dtype)


def encoder_graph(model: EdgeSam, dtype: torch.dtype) -> GraphSpec:
    """The encoder's graph, computing in `dtype`."""
    size = model.config.image_size
    return GraphSpec(
        name="encoder",
        module=EncoderGraph(model, dtype).eval(),
        example=(torch.zeros(2, 3, size, size),),
        inputs=("pixels",),
        outputs=("embeddings",),
        dynamic={"pixels": {0: "batch"}},
    )


def split_graphs(model: EdgeSam, dtype: torch.dtype) -> tuple[GraphSpec, GraphSpec, GraphSpec]:
    """The decoder in three graphs, for one image and many prompts.

    Of layers in float32 the image tokens stay factors; integers and halves keep the plain walk's arithmetic.
    """
    decoder = model.decoder
    factored = can_factor(decoder)
    split: SplitDecoder = FactoredDecoder(decoder, one_by_one=False) if factored else PlainSplit(decoder)
    embeddings, coords, labels, *_ = decoder_example(model.config, batch=1, sets=3, points=4)
    with torch.no_grad():
        for_predict, for_upscale = split.prepare(embeddings.to(dtype))
        _, sets = split.predict(for_predict, coords, labels)
    # the exporter would follow the strides of views
    for_predict, for_upscale, sets = (
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in parts.items()}
        for parts in (for_predict, for_upscale, sets)
    )
    prepare = GraphSpec(
        name="prepare",
        module=PrepareGraph(split, dtype).eval(),
        example=(embeddings,),
        inputs=("embeddings",),
        outputs=(*for_predict, *for_upscale),
        dynamic={},
    )
    predict = GraphSpec(
        name="predict",
        module=PredictGraph(split, tuple(for_predict)).eval(),
        example=(coords, labels, *for_predict.values()),
        inputs=("point_coords", "point_labels", *for_predict),
        outputs=("iou", *sets),
        dynamic={
            "point_coords": {1: "sets", 2: "points"},
            "point_labels": {1: "sets", 2: "points"},
        },
    )
    rows = {name: {0: "sets"} for name in sets}
    if factored:
        # heads x tokens
        rows |= {name: {0: "sets", 1: "rows"} for name in sets if name[0] in "ua"}
    upscale = GraphSpec(
        name="upscale",
        module=UpscaleGraph(split, tuple(for_upscale), tuple(sets)).eval(),
        example=(torch.tensor([0, 2, 1, 1]), torch.tensor([3, 0, 1, 2]), *for_upscale.values(), *sets.values()),
        inputs=("places", "masks", *for_upscale, *sets),
        outputs=("logits",),
        dynamic={"places": {0: "wanted"}, "masks": {0: "wanted"}, **rows},
    )
    return prepare, predict, upscale


def decoder_example(config: ModelConfig, batch: int, sets: int, points: int) -> tuple[Tensor, ...]:
    """Inputs of the decoder's graph, of the given sizes; foreground points, no mask prompts."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.ones(batch, sets, points, dtype=torch.long)
    labels[..., -1] = NOT_A_POINT
    return (
        torch.randn(batch, config.decoder.dim, config.grid, config.grid, generator=generator),
        torch.rand(batch, sets, points, 2, generator=generator) * config.image_size,
        labels,
        torch.zeros(batch, sets, 1, config.mask_size, config.mask_size),
        torch.zeros(batch, sets),
    )


def halve_positions(model: EdgeSam) -> None:
    """Store a quantized encoder's position embedding in float16, in place, which changes none of its values.

    It is the one large table that is added, not multiplied, so it has no integer form; in halves it no longer
    outweighs the int8 weights.
    """
    positions = getattr(model.image_encoder, "pos_embed", None)
    if positions is not None:
        model.image_encoder.pos_embed = nn.Parameter(positions.detach().half(), requires_grad=False)
