"""The papers' baseline: prune everything at once, then distil the image embedding."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sam_edge.compress.distil import DistilOptions, distil_embedding
from sam_edge.compress.prune import PruneOptions, prune_encoder
from sam_edge.models.sam import EdgeSam
from sam_edge.training.loop import Progress
from sam_edge.training.pictures import Pictures


@dataclass(frozen=True)
class OneStepOptions:
    """One-step compression."""

    prune: PruneOptions = field(default_factory=PruneOptions)
    """What is removed."""
    distil: DistilOptions = field(default_factory=DistilOptions)
    """How the rest recovers."""

    def as_dict(self) -> dict[str, object]:
        """Settings for the lineage."""
        return {"method": "slimsam", "schedule": "one-step", **asdict(self.prune), **asdict(self.distil)}


def compress_one_step(
    model: EdgeSam,
    pictures: Pictures,
    options: OneStepOptions,
    *,
    state_file: Path | None = None,
    on_step: Callable[[Progress, dict[str, float]], None] | None = None,
) -> Progress | None:
    """Prune and distil `model` in place; returns the training's progress, None without epochs.

    Raises:
        CompressionError: a request that the model cannot satisfy. DataError, TrainingError: see `distil_embedding`.
    """
    teacher = copy.deepcopy(model) if options.distil.epochs else None
    prune_encoder(model, options.prune)
    if teacher is None:
        return None
    return distil_embedding(model, teacher, pictures, options.distil, state_file=state_file, on_step=on_step)
