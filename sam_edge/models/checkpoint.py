"""Checkpoint folders (`config.json` + `model.safetensors`) and other people's checkpoint files."""

import argparse
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sam_edge.errors import CheckpointError, SamEdgeError
from sam_edge.files import atomic_folder, parse_json
from sam_edge.models.packing import from_bytes, pack, to_bytes, unpack
from sam_edge.models.sam import EdgeSam
from sam_edge.segment.config import ModelConfig
from sam_edge.segment.known import WEIGHTS

CONFIG = "config.json"
METADATA = "sam_edge_config"
"""Key of a `.safetensors` file's own metadata under which `config.json` lies, where the file is the whole model."""
HARMLESS: list[Any] = [
    argparse.Namespace,
    # the function by which a NumPy scalar is pickled, whatever this version calls it
    np.float64(0).__reduce__()[0],
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)),
]
"""What programs keep beside weights: options, and numbers of NumPy. Making them runs nothing of a file's."""
CONTAINERS = ("model", "state_dict", "model_state_dict", "model_state", "ema")
"""What training programs keep weights under, beside their optimizer's state."""
MANY = 1 << 20
"""Weights by which a config and its file may differ before it is built."""
NEVER_HALVED = ("weight_scale", "positional_encoding_gaussian_matrix")
"""Small tensors that stay float32: scales of integers, and frequencies whose phases halves cannot hold."""
POSITIONS, EXPONENTS = "image_encoder.pos_embed", "image_encoder.pos_embed_exponents"
"""The one large table beside the weights; a quantized model's is stored in bytes, with a power of two per channel."""


def save_checkpoint(model: EdgeSam, folder: str | Path, *, half: bool = False) -> Path:
    """Write a checkpoint folder, whole or not at all; `half` stores floats as fp16.

    The weights' file holds the config too: parted from its folder it is the same model. Of a quantized model integers
    of fewer than 8 bits are packed, and with `half` positions are bytes.

    Raises:
        SamEdgeError: the folder cannot be written, or holds something else.
    """
    tensors = state_to_store(model, half=half)
    with atomic_folder(folder) as work:
        (work / CONFIG).write_text(model.config.to_json())
        save_tensors(tensors, work / WEIGHTS, {METADATA: model.config.to_json()})
    return Path(folder)


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others may read too.

    Raises:
        OSError: the disk refuses the write, which safetensors reports in an error of its own.
    """
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        raise OSError(_first_line(error)) from error
    file.chmod(0o644)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file that `save_tensors` wrote, and what was noted with them.

    Raises:
        CheckpointError: it cannot be read, or is no such file.
    """
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not what was saved there: delete it to begin anew.") from error


def state_to_store(model: EdgeSam, *, half: bool = False) -> dict[str, Tensor]:
    """What of a model goes into its file: each tensor once, halved and packed as `save_checkpoint` says."""
    tensors = {
        name: _stored(value, half and _is_halved(name, value))
        for name, value in model.state_dict().items()
        if name not in _shared(model)
    }
    if half and POSITIONS in tensors and model.config.quantization is not None:
        tensors[POSITIONS], tensors[EXPONENTS] = to_bytes(model.state_dict()[POSITIONS].cpu())
    tensors |= {name: pack(tensors[name], bits) for name, bits in _packed(model.config).items()}
    return tensors


def _stored(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if half else value


def _is_halved(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and not name.endswith(NEVER_HALVED)


def _packed(config: ModelConfig) -> dict[str, int]:
    """Names and bits of weights that are stored packed."""
    layers = (config.quantization or {}).items()
    return {f"{name}.weight": entry["bits"] for name, entry in layers if "heads" not in entry and entry["bits"] < 8}


def _shared(model: nn.Module) -> set[str]:
    """Second names of tensors that modules share; safetensors stores each once."""
    seen: set[int] = set()
    second: set[str] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen:
            second.add(name)
        seen.add(id(value))
    return second


def load_checkpoint(folder: str | Path) -> EdgeSam:
    """Build the model that a checkpoint folder describes, in float32, quantized where its config says so.

    Raises:
        CheckpointError: a missing or broken file, or weights that do not fit the config.
    """
    folder = Path(folder)
    return _built(ModelConfig.read(folder / CONFIG), read_state_dict(folder / WEIGHTS), folder)


def load_single(file: str | Path) -> EdgeSam | None:
    """The model that a safetensors file is, by the config in its metadata; None where there is none.

    Raises:
        CheckpointError: a broken file or config, or weights that do not fit it.
    """
    file = Path(file)
    if file.suffix != ".safetensors" and not _begins_as_safetensors(file):
        return None
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(METADATA)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a checkpoint, or was cut short: {_first_line(error)}.") from error
    if text is None:
        return None
    try:
        config = ModelConfig.from_dict(parse_json(text))
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file}: its metadata is no model's config: {error}.") from error
    return _built(config, read_state_dict(file), file)


def _built(config: ModelConfig, state: dict[str, Tensor], source: Path) -> EdgeSam:
    _check_size(config, state, source)
    try:
        model = EdgeSam(config)
        if config.quantization is not None:
            from sam_edge.models.quantized import insert_quantized_layers, prepare_for_quantization

            prepare_for_quantization(model)
            insert_quantized_layers(model, config.quantization)
    except SamEdgeError:
        raise
    except Exception as error:
        # wide on purpose: what a config may say wrongly, the modules that are built of it say in as many ways
        raise CheckpointError(f"{source}: its config describes no model ({_first_line(error)}).") from error
    shapes = model.state_dict()
    for name, bits in _packed(config).items():
        state[name] = _unpacked(state.get(name), bits, shapes[name].shape, f"{source}: {name}")
    if EXPONENTS in state:
        state[POSITIONS] = _positions(state.get(POSITIONS), state.pop(EXPONENTS), f"{source}: {POSITIONS}")
    load_weights(model, state, source)
    return model


def _check_size(config: ModelConfig, state: dict[str, Tensor], source: Path) -> None:
    """Raises CheckpointError for a config of far more weights than there are, before memory is filled with them."""
    if config.arch == "timm":
        # which measures its network to build it
        return
    try:
        with torch.device("meta"):
            described = sum(value.numel() for value in EdgeSam(config).state_dict().values())
    except Exception as error:
        raise CheckpointError(f"{source}: its config describes no model ({_first_line(error)}).") from error
    # of packed integers several go into a byte
    held = sum(value.numel() * max(value.element_size(), 2) for value in state.values())
    if described > 2 * held + MANY:
        raise CheckpointError(f"{source}: its config describes {described} weights, and the file holds {held} bytes.")


def _unpacked(packed: Tensor | None, bits: int, shape: torch.Size, what: str) -> Tensor:
    if packed is None or packed.dtype != torch.uint8 or packed.numel() != -(-shape.numel() * bits // 8):
        raise CheckpointError(f"{what} does not hold {shape.numel()} packed {bits}-bit integers.")
    return unpack(packed, bits, shape)


def _positions(integers: Tensor | None, exponents: Tensor, what: str) -> Tensor:
    if (
        integers is None
        or integers.dtype != torch.int8
        or exponents.dtype != torch.int8
        or exponents.shape != integers.shape[-1:]
    ):
        raise CheckpointError(f"{what} and its exponents do not hold 8-bit integers of as many channels.")
    return from_bytes(integers, exponents)


def holds_halves(model: EdgeSam) -> bool:
    """Whether `save_checkpoint(half=True)` would change no weight: so for what was loaded from halves."""
    return all(torch.equal(value, rounded) for value, rounded in _rounded(model))


def round_to_halves(model: EdgeSam) -> None:
    """Round in place what `save_checkpoint(half=True)` stores in fewer bits, so that nothing changes by saving."""
    for value, rounded in _rounded(model):
        value.copy_(rounded)


def _rounded(model: EdgeSam) -> Iterator[tuple[Tensor, Tensor]]:
    """Each float of fewer bits in a half-precision folder: as it is, and as it would be read back."""
    for name, value in model.state_dict().items():
        if name == POSITIONS and model.config.quantization is not None:
            yield value, from_bytes(*to_bytes(value))
        elif _is_halved(name, value):
            yield value, value.half().to(value.dtype)


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly; float weights become float32.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors, integers for floats, or not finite ones, the first
            few named.
    """
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if wanted[name].shape != state[name].shape
    ]
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name} is unexpected" for name in extra),
        *shapes,
        *(
            f"{name} is of {str(value.dtype).removeprefix('torch.')}"
            for name, value in state.items()
            if name in wanted and value.is_floating_point() != wanted[name].is_floating_point()
        ),
        *(f"{name} is not finite" for name, value in state.items() if not torch.isfinite(value).all()),
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} does not fit this model: {'; '.join(problems[:3])}{more}.")
    model.load_state_dict(state)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or a pickle, whatever it is called; wrappers such as {"model": ...} are opened.

    Pickles are read with `weights_only=True`: nothing in them is executed.

    Raises:
        CheckpointError: missing, truncated, no state dict, or a pickle that would need to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a checkpoint file or folder, or a known model name.")
    try:
        if path.suffix == ".safetensors" or _begins_as_safetensors(path):
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (text := _text_at_the_start(path)) is not None:
            raise CheckpointError(
                f"{path} is text, no weights: it begins with {text!r}. A web page, or a pointer of Git LFS, was saved "
                "in their place: download the file itself (`git lfs pull`)."
            ) from error
        if "Unsupported" in str(error) or "Weights only" in str(error):
            raise CheckpointError(
                f"{path} is a pickle of objects, not of weights, and loading it would run its code: in the program "
                "that made it, save `model.state_dict()` to a .pth or .safetensors file instead."
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint, or was cut short.") from error
    except Exception as error:
        # wide on purpose: what is no pickle makes its reader raise almost anything
        raise CheckpointError(f"{path} is not a checkpoint, or was cut short: {_first_line(error)}.") from error
    for key in CONTAINERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise CheckpointError(f"{path} holds no state dict: save `model.state_dict()` instead.")
    # PyTorch keeps a number that was expanded to terabytes in four bytes
    room = path.stat().st_size
    for name, value in loaded.items():
        plain = value.layout == torch.strided and not (value.is_quantized or value.is_complex() or value.is_meta)
        if not plain or value.numel() * value.element_size() > room:
            raise CheckpointError(
                f"{path}: {name:.100} is no plain tensor of this file's: save weights as dense floats on the CPU."
            )
    return loaded


def _begins_as_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON object, and that."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size


def _text_at_the_start(path: Path) -> str | None:
    """A file's first words, if it is text."""
    with path.open("rb") as file:
        head = file.read(256)
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        return None
    words = " ".join(text.split())
    return words[:40] if words.isprintable() and words else None


def weights_sha256(model: nn.Module) -> str:
    """Hex sha256 over names, types, shapes and bytes of every tensor: the same weights, the same hash, any file."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def is_checkpoint_folder(path: str | Path) -> bool:
    """True for a folder that sam-edge wrote a checkpoint into."""
    return (Path(path) / CONFIG).is_file() and (Path(path) / WEIGHTS).is_file()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
