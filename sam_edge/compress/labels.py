"""The loss that Taylor and hessian importance take on labelled pictures (SlimSAM, eq. 3): SAM's own, on one prompt."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sam_edge.data.dataset import Dataset
from sam_edge.data.sample import LabelledImage
from sam_edge.errors import DataError
from sam_edge.models.sam import EdgeSam
from sam_edge.training.interactive import InteractiveOptions, InteractiveSegmentation
from sam_edge.training.stream import stack_views
from sam_edge.training.views import ViewOptions, random_view

PROMPTS = 16
"""Masks of a picture that are asked for, each by a point or a box."""


class LabelledLoss:
    """`loss(model, name, seed)`: focal, dice and IoU loss on the whole picture of that name."""

    def __init__(self, dataset: Dataset[LabelledImage]) -> None:
        self._dataset = dataset
        self._index = {name: index for index, name in enumerate(dataset.names)}

    def __call__(self, model: EdgeSam, name: str, seed: int) -> Float[Tensor, ""] | None:
        """The loss, differentiable in the encoder's weights; None where nothing is labelled or can be read."""
        config = model.config
        views = ViewOptions(config.image_size, config.mask_size, PROMPTS, whole=1.0, padding=config.pixel_mean)
        try:
            view = random_view(self._dataset[self._index[name]], views, np.random.default_rng(seed))
        except (DataError, KeyError):
            return None
        if view is None:
            return None
        method = InteractiveSegmentation(model, InteractiveOptions(interactive_share=0.0), seed)
        return method(stack_views([view]), 0)[0]
