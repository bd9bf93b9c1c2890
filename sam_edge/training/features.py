"""Features of a pretrained image classifier, learned beside the labels.

A few hundred labelled photos hardly show what belongs together; a classifier has seen a million. Its inner maps are
predicted from the encoder's last tokens by one linear layer, which is there while training alone. As in feature
distillation (Wei et al. 2022, sec. 3), targets are normalised at each place, so that no channel outshouts the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sam_edge.errors import TrainingError
from sam_edge.models.checkpoint import weights_sha256
from sam_edge.models.sam import EdgeSam
from sam_edge.models.timm_weights import open_classifier

MAPS = 3
"""Maps learned: the classifier's last, of strides 8, 16 and 32."""
HEAD = "feature_head"
"""Name, in the model, of the layer that predicts them."""


@dataclass(frozen=True)
class FeatureOptions:
    """Whose features are learned."""

    classifier: str
    """Learn the features of this image classifier of timm's, which downloads it; NAME=FILE has its weights."""
    weight: float = 4.0
    """Weight of the features' distance beside the labels' loss."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise TrainingError(f"the features' weight must be positive, got {self.weight}.")


class ClassifierFeatures(nn.Module):
    """A classifier's last `MAPS` maps, each normalised at each place, on one grid."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        made: Any = classifier
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(made.pretrained_cfg[name]).view(3, 1, 1))
        self.channels: int = sum(info["num_chs"] for info in made.feature_info[-MAPS:])

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "b 3 s s"], grid: int) -> Float[Tensor, "b c g g"]:
        """Maps of RGB from 0 to 255, resampled to a grid."""
        classifier: Any = self.classifier
        maps = classifier.forward_intermediates((image - self.mean) / self.std, indices=MAPS, intermediates_only=True)
        maps = [F.layer_norm(x.movedim(1, -1).float(), x.shape[1:2]).movedim(-1, 1) for x in maps]
        return torch.cat([F.interpolate(x, (grid, grid), mode="bilinear", antialias=True) for x in maps], 1)


class FeatureLoss:
    """The distance of what a model's tokens predict from a classifier's features."""

    def __init__(self, options: FeatureOptions) -> None:
        """Opens the classifier.

        Raises:
            ModelError: no such classifier, or no network to download it. CheckpointError: weights not its own.
            TrainingError: a classifier without maps.
        """
        classifier = open_classifier(options.classifier)
        if not hasattr(classifier, "forward_intermediates"):
            raise TrainingError(f"timm gives out no maps of {options.classifier}: choose another classifier.")
        self.features = ClassifierFeatures(classifier)
        # a file's place says nothing of what is in it
        name, digest = options.classifier.partition("=")[0], weights_sha256(self.features.classifier)
        self.settings = {**asdict(options), "classifier": name, "sha256": digest}
        self.weight = options.weight
        self.tokens: Tensor | None = None

    @contextmanager
    def beside(self, model: EdgeSam) -> Iterator[None]:
        """Give `model` the layer that predicts features, for as long as it trains."""
        neck: Any = model.image_encoder.neck
        device = next(model.parameters()).device
        head = nn.Conv2d(neck[0].in_channels, self.features.channels, 1)
        for parameter in head.parameters():
            # until it has learned something, it asks nothing of the encoder
            nn.init.zeros_(parameter)
        self.features.to(device)
        model.add_module(HEAD, head.to(device))

        # no method: a copy of the model, as validation makes, would copy the classifier with it
        def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.tokens = given[0]

        handle = neck.register_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()
            delattr(model, HEAD)

    def __call__(self, model: EdgeSam, image: Float[Tensor, "b 3 s s"]) -> Float[Tensor, ""]:
        """The weighted distance for the pictures that `model` encoded last, RGB from 0 to 255."""
        assert self.tokens is not None
        tokens, self.tokens = self.tokens, None
        found = model.get_submodule(HEAD)(tokens)
        return self.weight * F.smooth_l1_loss(found.float(), self.features(image, found.shape[-1]))
