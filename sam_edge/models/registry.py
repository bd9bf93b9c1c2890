"""The models known by name, and `load_model`, which opens whatever a user may mean by MODEL."""

import difflib
import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sam_edge.errors import BackendUnavailableError, CheckpointError, ModelError
from sam_edge.models.checkpoint import (
    CONFIG,
    WEIGHTS,
    is_checkpoint_folder,
    load_checkpoint,
    load_weights,
    read_state_dict,
)
from sam_edge.models.config import DecoderConfig, ModelConfig, uniform_blocks
from sam_edge.models.keys import recognise
from sam_edge.models.sam import EdgeSam
from sam_edge.models.tiny_vit import TINY_VIT_5M_STAGES

PACKAGED = "packaged with sam-edge"
RANDOM = "random:"


@dataclass(frozen=True)
class KnownModel:
    """A model with a name: what it is made of, and where its weights come from."""

    name: str
    """What users type."""
    config: ModelConfig
    """Its architecture."""
    summary: str
    """One line for listings."""
    source: str
    """A URL, a Hugging Face repository (`owner/name`), or `PACKAGED`."""
    file_name: str
    """The weights' file there."""
    licence: str
    """SPDX identifier of the weights' licence."""
    sha256_prefix: str | None = None
    """How the file's sha256 begins; None where the hub reports it or nobody published one."""

    @property
    def is_url(self) -> bool:
        """True when the weights come from a plain URL."""
        return self.source.startswith(("http://", "https://"))


def _vit(depth: int, embed: int, heads: int, global_at: tuple[int, ...], mlp: int | None = None) -> ModelConfig:
    return ModelConfig("vit", 1024, uniform_blocks(depth, embed, heads, global_at, window=14, mlp=mlp))


NANO_CONFIG = ModelConfig(
    arch="slim_vit",
    image_size=256,
    patch_size=8,
    blocks=uniform_blocks(8, 160, 5, (3, 7), window=8),
    decoder=DecoderConfig(dim=128, mlp=512, iou_hidden=128),
)
"""The architecture of `nano`; a test holds the packaged weights to it."""

_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"
_MOBILE_SAM = "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/"

_MODELS = (
    KnownModel(
        "vit_b",
        _vit(12, 768, 12, (2, 5, 8, 11)),
        "Segment Anything's smallest, 94 M parameters",
        f"{_OFFICIAL}sam_vit_b_01ec64.pth",
        "sam_vit_b_01ec64.pth",
        "Apache-2.0",
        "01ec64",
    ),
    KnownModel(
        "vit_l",
        _vit(24, 1024, 16, (5, 11, 17, 23)),
        "Segment Anything's middle size, 312 M parameters",
        f"{_OFFICIAL}sam_vit_l_0b3195.pth",
        "sam_vit_l_0b3195.pth",
        "Apache-2.0",
        "0b3195",
    ),
    KnownModel(
        "vit_h",
        _vit(32, 1280, 16, (7, 15, 23, 31)),
        "Segment Anything's largest and most accurate, 641 M parameters",
        f"{_OFFICIAL}sam_vit_h_4b8939.pth",
        "sam_vit_h_4b8939.pth",
        "Apache-2.0",
        "4b8939",
    ),
    KnownModel(
        "vit_t",
        ModelConfig("tiny_vit", 1024, stages=TINY_VIT_5M_STAGES),
        "MobileSAM: a TinyViT encoder distilled from vit_h, 10 M parameters",
        f"{_MOBILE_SAM}weights/mobile_sam.pt",
        "mobile_sam.pt",
        "Apache-2.0",
        # not in its repository; many projects that pin this file publish the same sum
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    KnownModel(
        "slimsam-50",
        _vit(12, 384, 12, (2, 5, 8, 11)),
        "SlimSAM: vit_b with half of its channels, 28 M parameters",
        "Zigeng/SlimSAM-uniform-50",
        "model.safetensors",
        "Apache-2.0",
    ),
    KnownModel(
        "slimsam-77",
        _vit(12, 168, 12, (2, 5, 8, 11), mlp=696),
        "SlimSAM: vit_b with 77 % of its channels removed, 10 M parameters",
        "Zigeng/SlimSAM-uniform-77",
        "model.safetensors",
        "Apache-2.0",
    ),
    KnownModel(
        "nano",
        NANO_CONFIG,
        "sam-edge's own small model for 256 px, needs no download",
        PACKAGED,
        WEIGHTS,
        "Apache-2.0",
    ),
)

KNOWN: dict[str, KnownModel] = {model.name: model for model in _MODELS}
"""Every known model by name."""


def load_model(spec: str | Path, device: str = "cpu") -> EdgeSam:
    """Open a MODEL on `device`, in float32 and evaluation mode.

    `spec` is a known name, `random:NAME` (that architecture with random weights, for timing), a checkpoint
    file, or a checkpoint folder. A bare known name means the known model, even beside a file of that name;
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
    if name not in KNOWN:
        raise ModelError(_unknown(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EdgeSam(KNOWN[name].config)


def _open(spec: str | Path) -> EdgeSam:
    text, path = str(spec), Path(spec).expanduser()
    if text.startswith(RANDOM):
        return random_model(text.removeprefix(RANDOM))
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
    folder = Path(str(importlib.resources.files("sam_edge.models") / name))
    if not is_checkpoint_folder(folder):
        raise CheckpointError(
            f"{name} is not in this installation ({folder} has no {WEIGHTS}): "
            "reinstall sam-edge from a release, or choose another model."
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
        return _open_file(folder / WEIGHTS)
    return load_checkpoint(folder)


def _open_file(path: Path) -> EdgeSam:
    if path.name == WEIGHTS and is_checkpoint_folder(path.parent) and not _is_hugging_face(path.parent):
        # its config.json knows what shapes do not: heads, thresholds, quantization
        return load_checkpoint(path.parent)
    state, config = recognise(read_state_dict(path))
    model = EdgeSam(config)
    load_weights(model, state, path)
    return model


def _is_hugging_face(folder: Path) -> bool:
    """True for a download of a `SamModel`, which has the same two file names as our folders."""
    try:
        return json.loads((folder / CONFIG).read_text()).get("model_type") == "sam"
    except (OSError, ValueError, AttributeError):
        return False
