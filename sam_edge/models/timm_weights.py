"""Weights of timm's image classifiers: from its hub, or from a file."""

import timm
from torch import nn

from sam_edge.errors import CheckpointError, ModelError
from sam_edge.models.checkpoint import read_state_dict
from sam_edge.models.timm_encoder import TimmEncoder, no_such_network


def open_classifier(spec: str) -> nn.Module:
    """One of timm's image classifiers: `NAME`, downloaded by timm, or `NAME=FILE`.

    A .pth file with names of its own is taken in its order, if every shape is the one wanted there.

    Raises:
        ModelError: no such classifier, or no network.
        CheckpointError: an unreadable file, or another network's.
    """
    name, _, file = spec.partition("=")
    if not timm.is_model(name):
        raise no_such_network(name)
    try:
        classifier = timm.create_model(name, pretrained=not file)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"timm cannot download {name} ({reason}): give {name}=FILE with the weights of timm's {name} "
            "(.safetensors or .pth)."
        ) from error
    if file:
        state, wanted = read_state_dict(file), classifier.state_dict()
        if state.keys() != wanted.keys():
            state = dict(zip(wanted, state.values(), strict=False))
        if any(name not in state or state[name].shape != value.shape for name, value in wanted.items()):
            raise CheckpointError(f"{file} does not hold the weights of {name}: their number or shapes differ.")
        classifier.load_state_dict(state)
    return classifier


def pixel_statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of RGB from 0 to 255 that a network was trained with.

    Raises:
        ModelError: no such network.
    """
    if not timm.is_model(name):
        raise no_such_network(name)
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    red, green, blue = known.mean
    mean = (255 * red, 255 * green, 255 * blue)
    red, green, blue = known.std
    return mean, (255 * red, 255 * green, 255 * blue)


def load_backbone(encoder: TimmEncoder, spec: str) -> None:
    """Give an encoder's backbone the weights of a classifier, `NAME` or `NAME=FILE`.

    Raises:
        ModelError, CheckpointError: as `open_classifier`; or the classifier of another backbone.
    """
    # timm joins the names of stages by an underscore where it takes a network apart into maps
    given = {key.replace(".", "_"): value for key, value in open_classifier(spec).state_dict().items()}
    wanted = encoder.backbone.state_dict()
    state = {key: given.get(key.replace(".", "_")) for key in wanted}
    if any(value is None or value.shape != wanted[key].shape for key, value in state.items()):
        raise CheckpointError(f"the weights of {spec.partition('=')[0]} do not fit this encoder's backbone.")
    encoder.backbone.load_state_dict(state)
