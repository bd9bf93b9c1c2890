"""`load_model` opens whatever a user may mean by MODEL."""

import difflib
from pathlib import Path

import torch

from sam_edge.errors import BackendUnavailableError, CheckpointError, ModelError
from sam_edge.files import parse_json
from sam_edge.models.checkpoint import (
    CONFIG,
    is_checkpoint_folder,
    load_checkpoint,
    load_single,
    load_weights,
    read_state_dict,
)
from sam_edge.models.keys import recognise
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.segment.config import BackboneConfig, DecoderConfig, ModelConfig
from sam_edge.segment.known import KNOWN, PACKAGED, WEIGHTS, KnownModel, shipped_folder

RANDOM, TIMM = "random:", "timm:"


def load_model(spec: str | Path, device: str = "cpu") -> EdgeSam:
    """Open a MODEL on `device`, in float32 and evaluation mode.

    `spec` is a known name, `random:NAME` (that architecture with random weights, for timing), `timm:NAME` or
    `timm:NAME=FILE` (a backbone of timm's with its pretrained weights, all else random), a checkpoint file, or a
    checkpoint folder. A bare known name means the known model, even beside a file of that name;
    `./NAME` means the file.

    Raises:
        ModelError: no such name, file or folder.
        CheckpointError: weights that cannot be fetched, read, recognised or fitted.
        BackendUnavailableError: a device that is not there.
    """
    model = _open(spec)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendUnavailableError(f"device {device!r} cannot be used ({reason}): choose cpu.") from error


def random_model(name: str, seed: int = 0) -> EdgeSam:
    """A known architecture with seeded random weights: what it costs, without a download.

    Raises:
        ModelError: an unknown name.
    """
    config = architecture(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EdgeSam(config)


def architecture(name: str) -> ModelConfig:
    """The config of a known name, or of `timm:NAME`.

    Raises:
        ModelError: an unknown name.
    """
    if name.startswith(TIMM):
        return timm_config(name.removeprefix(TIMM).partition("=")[0])
    if name not in KNOWN:
        raise ModelError(_unknown(name))
    return KNOWN[name].config


def timm_model(spec: str, seed: int = 0) -> EdgeSam:
    """A SAM behind a pretrained backbone of timm's, `NAME` or `NAME=FILE`: all but the backbone is yet to be trained.

    Raises:
        ModelError: no such backbone, or weights that cannot be downloaded. CheckpointError: another network's weights.
    """
    from sam_edge.models.timm_weights import load_backbone

    model = EdgeSam(timm_config(spec.partition("=")[0]))
    initialise(model, seed)
    load_backbone(model.image_encoder, spec)
    return model


def timm_config(name: str) -> ModelConfig:
    """A SAM of the official size and decoder behind a backbone of timm's, for pixels as that was trained with.

    Raises:
        ModelError: no such backbone.
    """
    from sam_edge.models.timm_weights import pixel_statistics

    mean, std = pixel_statistics(name)
    return ModelConfig("timm", 1024, backbone=BackboneConfig(name), pixel_mean=mean, pixel_std=std)


def _open(spec: str | Path) -> EdgeSam:
    text, path = str(spec), Path(spec).expanduser()
    if text.startswith(RANDOM):
        return random_model(text.removeprefix(RANDOM))
    if text.startswith(TIMM):
        return timm_model(text.removeprefix(TIMM))
    if text in KNOWN and not (isinstance(spec, Path) and path.exists()):
        return _open_known(KNOWN[text])
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_file(path)
    raise ModelError(_unknown(text))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), KNOWN, n=1)
    hint = f" did you mean {close[0]}?" if close else ""
    return f"{name!r} is neither a known model nor a file or folder:{hint} Known models are {', '.join(KNOWN)}."


def _open_known(known: KnownModel) -> EdgeSam:
    if known.source == PACKAGED:
        return load_checkpoint(packaged_folder(known.name))
    # here, not above: the download module needs KnownModel
    from sam_edge.models.download import fetch

    path = fetch(known)
    state, _ = recognise(read_state_dict(path))
    model = EdgeSam(known.config)
    load_weights(model, state, path)
    return model


def packaged_folder(name: str) -> Path:
    """Checkpoint folder of a model that ships with sam-edge.

    Raises:
        CheckpointError: this installation lacks it.
    """
    folder = shipped_folder(name)
    if not is_checkpoint_folder(folder):
        raise CheckpointError(
            f"{name} is not in this installation ({folder} has no {WEIGHTS}): install sam-edge from its "
            "repository, which has all weights, or choose another model."
        )
    return folder


def _open_folder(folder: Path) -> EdgeSam:
    if (folder / "model.json").is_file():
        raise CheckpointError(
            f"{folder} is an exported folder: it holds graphs, not weights. "
            "Give the checkpoint folder it was exported from."
        )
    if not is_checkpoint_folder(folder):
        raise CheckpointError(f"{folder} is no checkpoint folder: one holds {CONFIG} and {WEIGHTS}.")
    if _is_hugging_face(folder):
        return _recognised(folder / WEIGHTS)
    return load_checkpoint(folder)


def _open_file(path: Path) -> EdgeSam:
    if path.name == WEIGHTS and is_checkpoint_folder(path.parent):
        # its config.json knows what shapes do not: heads, thresholds, quantization
        return _open_folder(path.parent)
    whole = load_single(path)
    if whole is not None:
        return whole
    model = _recognised(path)
    # whoever saves SAM's own modules saves SAM's own decoder; sam-edge's .safetensors have held their config since
    if path.suffix == ".safetensors" and model.config.decoder.dim != DecoderConfig.dim:
        raise CheckpointError(
            f"{path} holds weights without their config.json, of a decoder that is not SAM's (its width is "
            f"{model.config.decoder.dim}): its heads, and what it draws of prompts, are not in them. "
            "Give the checkpoint folder."
        )
    return model


def _recognised(path: Path) -> EdgeSam:
    """The model that a file's names and shapes imply."""
    state, config = recognise(read_state_dict(path))
    model = EdgeSam(config)
    load_weights(model, state, path)
    return model


def _is_hugging_face(folder: Path) -> bool:
    """True for a download of a `SamModel`, which has the same two file names as our folders."""
    try:
        return parse_json((folder / CONFIG).read_bytes()).get("model_type") == "sam"
    except (OSError, ValueError, AttributeError):
        return False
