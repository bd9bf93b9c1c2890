"""Files that hold a part of a SAM: an encoder distilled on its own, or a decoder trained further."""

from dataclasses import replace
from pathlib import Path

from sam_edge.errors import CheckpointError
from sam_edge.models.checkpoint import load_weights, read_state_dict
from sam_edge.models.keys import PARTS, State, native_names, pixel_statistics, recognise
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import DecoderConfig, ModelConfig

READ_OFF_SHAPES = ("dim", "depth", "mlp", "mask_channels", "iou_hidden")
"""What of a decoder's config its weights tell; heads and drawn prompts are the base's."""


def complete(file: str | Path, base: EdgeSam) -> EdgeSam:
    """The SAM whose image encoder, prompt encoder and mask decoder are those in `file`, and `base`'s where it has none.

    Names may be those of any layout that `recognise` knows, or an encoder's own without the prefix. Pixel statistics
    are the file's, or else of whom the encoder is of; thresholds and heads of the decoder the base's.

    Raises:
        CheckpointError: no file, no part or all of them, a quantized base, or parts that do not fit each other.
    """
    if not Path(file).is_file():
        raise CheckpointError(f"{file} is no file: --base is for one that holds an encoder or a decoder alone.")
    state = read_state_dict(file)
    given = native_names(state)
    held = tuple(part for part in PARTS if any(name.startswith(part) for name in given))
    if not held:
        names = ", ".join(list(given)[:3]) or "no tensors"
        raise CheckpointError(f"{file} holds no part of a SAM ({names}, ...).")
    if held == PARTS:
        raise CheckpointError(f"{file} holds a whole SAM: leave out --base.")
    if base.config.quantization is not None:
        raise CheckpointError("a quantized --base has no float parts to give: take the checkpoint before quantization.")
    rest = {name: value for name, value in base.state_dict().items() if not name.startswith(held)}
    whole = {**{name: value for name, value in given.items() if name.startswith(held)}, **rest}
    config = _config(whole, held, base.config)
    model = EdgeSam(config.replace(**pixel_statistics(state)))
    load_weights(model, whole, file)
    return model


def _config(whole: State, held: tuple[str, ...], base: ModelConfig) -> ModelConfig:
    if "image_encoder." not in held:
        # a decoder's shapes say nothing of the encoder in front of it, which may be of a kind without known names
        return base
    _, found = recognise(whole)
    return found.replace(decoder=_decoder(found.decoder, held, base.decoder), thresholds=base.thresholds)


def _decoder(found: DecoderConfig, held: tuple[str, ...], base: DecoderConfig) -> DecoderConfig:
    read = {name: getattr(found, name) for name in READ_OFF_SHAPES}
    drawn = {} if "prompt_encoder." not in held else {"draws_boxes": False, "draws_points": False}
    return replace(base, **read, **drawn)
